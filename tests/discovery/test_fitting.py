import math
from dataclasses import replace
from pathlib import Path

import pydantic
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.activations.disagreements import NONE, Disagreements
from lm_eval_hybrid.discovery.activations.readers import TOP
from lm_eval_hybrid.discovery.vectors import fitting as module
from lm_eval_hybrid.discovery.vectors.fitting import DisagreementRecipe, FitData, LikelihoodRecipe, fit
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import LocalSteeredModel, SteeringVectors
from lm_eval_hybrid.discovery.vectors.trainer import FittedVectors
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import Studied
from tests.discovery.naive_steering import (
    LATENTS,
    LAYER,
    SILENT,
    WIDTH,
    effects_of,
    fit_data_of,
    naive_logits,
    naive_residual,
)
from tests.tiny_system import tiny_model, tiny_tokenizer
from tests.tolerances import approx

LOSS = 10.0  # a bound on the loss of a token, in nats

LIKELIHOOD = LikelihoodRecipe(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4)
DISAGREEMENT = DisagreementRecipe(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, hidden=8)
RECIPES = (LIKELIHOOD, DISAGREEMENT)


@pytest.fixture(scope="module")
def data(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> FitData:
    return fit_data_of(studied, tmp_path_factory.mktemp("vectors") / "gates")


def tensors(fitted: FittedVectors) -> list[Tensor]:
    network = [] if fitted.network is None else list(vars(fitted.network).values())
    return [fitted.bias, fitted.vectors, *network]


def assert_same(one: FittedVectors, other: FittedVectors) -> None:
    assert one.curves == other.curves
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@torch.no_grad()
def naive_cross_entropy(data: FitData, fitted: FittedVectors) -> float:
    """Mean over the tokens of held-out sentences."""
    model, losses = data.model.prefixes.base.model._module, []
    for segment in data.sentences:
        if data.held_out[segment.row]:
            steering = (fitted.bias + fitted.vectors[segment.category]).expand(len(segment.targets), -1)
            logits = naive_logits(model, LAYER, data.model.prefixes.rows[segment.row], segment.begin, steering)
            losses += [-row.log_softmax(-1)[token] for row, token in zip(logits, segment.targets, strict=True)]
    return float(torch.stack(losses).mean())


def naive_targets(gates: Disagreements, gate: int, top: int) -> list[tuple[int, float]]:
    """The likeliest tokens that the base's vocabulary has, with probabilities that add up to 1."""
    crossing = [
        (token, logprob)
        for token, logprob in zip(gates.top[gate].tolist(), gates.top_logprob[gate].tolist(), strict=True)
        if token != NONE
    ][:top]
    total = sum(math.exp(logprob) for _, logprob in crossing)
    return [(token, math.exp(logprob) / total) for token, logprob in crossing]


@torch.no_grad()
def naive_divergence(data: FitData, fitted: FittedVectors, top: int) -> float:
    """Mean over held-out gates."""
    model, gates, losses = data.model.prefixes.base.model._module, data.gates, []
    for gate, (trace, column, category) in enumerate(zip(gates.trace, gates.column, gates.category, strict=True)):
        if not data.held_out[trace]:
            continue
        row = data.model.prefixes.rows[trace]
        direction = fitted.bias + fitted.vectors[category]
        if fitted.network is not None:
            residual = naive_residual(model, LAYER, row)[column : column + 1]
            direction = direction * fitted.network.coefficient(residual, category[None])
        ours = naive_logits(model, LAYER, row, int(column), direction.reshape(1, -1))[0].log_softmax(-1)
        losses.append(
            sum(p * (torch.tensor(p).log().item() - float(ours[token])) for token, p in naive_targets(gates, gate, top))
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_a_fit_lowers_the_held_out_loss_keeps_the_weights_and_is_deterministic(
    data: FitData, tmp_path: Path, recipe: LikelihoodRecipe | DisagreementRecipe
) -> None:
    weights = list(data.model.prefixes.base.model._module.parameters())
    before = [weight.clone() for weight in weights]
    fitted = fit(data, recipe, 0, tmp_path / "a")
    assert fitted.bias.shape == (WIDTH,) and fitted.vectors.shape == (LATENTS, WIDTH)
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" and not t.requires_grad for t in tensors(fitted))
    assert (fitted.network is None) == (recipe is LIKELIHOOD)
    start, bias, best = (
        fitted.curves["bias"][0].held_out,
        min(point.held_out for point in fitted.curves["bias"]),
        min(point.held_out for point in fitted.curves["vectors"]),
    )
    assert best < bias < start
    # The vectors start from the fitted bias.
    assert fitted.curves["vectors"][0].held_out == approx(bias, magnitude=LOSS)
    assert all(
        torch.equal(a, b) for a, b in zip(before, data.model.prefixes.base.model._module.parameters(), strict=True)
    )
    assert_same(fit(data, recipe, 0, tmp_path / "b"), fitted)
    assert_same(fit(data, recipe, 0, tmp_path / "a"), fitted)


def test_the_likelihood_loss_is_the_cross_entropy_of_the_sentences(data: FitData, tmp_path: Path) -> None:
    fitted = fit(data, LIKELIHOOD, 0, tmp_path)
    nothing = FittedVectors(0 * fitted.bias, 0 * fitted.vectors, None, {})
    assert fitted.curves["bias"][0].held_out == approx(naive_cross_entropy(data, nothing), magnitude=LOSS)
    best = min(point.held_out for point in fitted.curves["vectors"])
    assert best == approx(naive_cross_entropy(data, fitted), magnitude=LOSS)


@pytest.mark.parametrize("top", [1, 3, TOP])
def test_the_disagreement_loss_is_the_divergence_from_the_top_tokens(data: FitData, tmp_path: Path, top: int) -> None:
    """Even if the base's vocabulary lacks the likeliest tokens, or all of them."""
    found = data.gates.top.clone()
    found[::3, 0], found[1::5, 2:] = NONE, NONE
    last = int(data.gates.trace.max()) == data.gates.trace
    found[last.nonzero()[0, 0]] = NONE
    data = replace(data, gates=replace(data.gates, top=found))
    fitted = fit(data, replace(DISAGREEMENT, top=top, epochs=1, bias_epochs=1), 0, tmp_path)
    nothing = FittedVectors(0 * fitted.bias, 0 * fitted.vectors, None, {})
    assert fitted.curves["bias"][0].held_out == approx(naive_divergence(data, nothing, top), magnitude=LOSS)
    best = min(point.held_out for point in fitted.curves["vectors"])
    assert best == approx(naive_divergence(data, fitted, top), magnitude=LOSS)
    assert best < fitted.curves["bias"][0].held_out


def test_equal_base_tokens_are_one_target(data: FitData) -> None:
    gates = replace(
        data.gates.of(torch.tensor([0])),
        top=torch.tensor([[5, 7, 7, NONE, 9, NONE, 5, 7], [NONE] * 8]),
        top_logprob=torch.tensor([[0.25, 0.2, 0.15, 0.14, 0.1, 0.08, 0.05, 0.03], [0.125] * 8]).log(),
    )
    targets = module._target_distribution(gates, 3)
    tokens, logprobs = targets.tokens, targets.logprobs
    assert tokens.tolist() == [[7, 5, 9], [NONE] * 3]
    torch.testing.assert_close(logprobs[0].exp(), torch.tensor([0.38, 0.30, 0.10]) / 0.78)
    assert not logprobs[1].any()
    assert module._target_distribution(gates, 1).logprobs.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_a_latent_without_training_data_keeps_a_zero_vector(
    data: FitData, tmp_path: Path, recipe: LikelihoodRecipe | DisagreementRecipe
) -> None:
    fitted = fit(data, recipe, 0, tmp_path)
    assert fitted.vectors[:SILENT].any(-1).all() and not fitted.vectors[SILENT].any()
    if fitted.network is not None:
        assert not fitted.network.heads_weight[SILENT].any()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_categories_do_not_influence_each_other(
    data: FitData, tmp_path: Path, recipe: LikelihoodRecipe | DisagreementRecipe
) -> None:
    """Adam's first step has the sign of the gradient."""
    recipe = replace(recipe, bias_epochs=0, epochs=1, batch=100)

    def first_step(some: FitData, folder: Path) -> Tensor:
        """The vectors after one step, even if it did not lower the held-out loss."""
        fit(some, recipe, 0, folder)
        return load_file(folder / "vectors.checkpoint.safetensors")["vectors"]

    together = first_step(data, tmp_path / "all")
    for category in range(SILENT):
        there = data.gates.category == category
        gates = {name: value if name == "places" else value[there] for name, value in vars(data.gates).items()}
        own = [s for s in data.sentences if s.category == category]
        alone = replace(
            data,
            gates=Disagreements(**gates),
            sentences=[replace(s, index=i) for i, s in enumerate(own)],
            activation=data.activation[[s.index for s in own]],
        )
        found = first_step(alone, tmp_path / str(category))
        assert found[category].all() and torch.equal(found[category].sign(), together[category].sign())
        assert not found[[other for other in range(LATENTS) if other != category]].any()


def naive_examples(data: FitData, most: int) -> list[int]:
    """Indices: of the 2 * `most` strongest sentences, the least likely."""
    model, chosen = data.model.prefixes.base.model._module, []
    for category in range(LATENTS):
        own = [s for s in data.sentences if s.category == category and not data.held_out[s.row]]
        strongest = sorted(own, key=lambda s: -float(data.activation[s.index]))[: 2 * most]
        loss = {}
        for s in strongest:
            still = torch.zeros(len(s.targets), WIDTH)
            with torch.no_grad():
                logits = naive_logits(model, LAYER, data.model.prefixes.rows[s.row], s.begin, still)
            loss[s.index] = -float(logits.log_softmax(-1)[range(len(s.targets)), list(s.targets)].mean())
        chosen += sorted(loss, key=lambda index: -loss[index])[:most]
    return sorted(chosen)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
def test_training_examples_are_the_least_likely_of_the_strongest(data: FitData, most: int) -> None:
    chosen = module._training_examples(data, data.sentence_segments(held_out=False), most)
    assert [segment.index for segment in chosen] == naive_examples(data, most)


def test_a_sentence_without_base_tokens_is_left_out(data: FitData, tmp_path: Path) -> None:
    empty = [Segment(row, 3, (), 0, len(data.sentences) + row) for row in (0, len(data.held_out) - 1)]
    more = replace(data, sentences=[*data.sentences, *empty], activation=torch.ones(len(data.sentences) + 12))
    assert len(more.sentence_segments(held_out=True)) == len(data.sentence_segments(held_out=True))
    alike = replace(data, activation=torch.ones(len(data.sentences)))
    recipe = replace(LIKELIHOOD, examples=2)
    assert_same(fit(more, recipe, 0, tmp_path / "more"), fit(alike, recipe, 0, tmp_path / "alike"))


def test_a_network_starts_with_coefficients_of_one_and_depends_on_the_seed(data: FitData, tmp_path: Path) -> None:
    recipe = replace(DISAGREEMENT, bias_epochs=0, epochs=0)
    zero, one = (fit(data, recipe, seed, tmp_path / str(seed)).network for seed in (0, 1))
    residual = 5 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    category = torch.arange(20) % LATENTS
    for network in (zero, one):
        torch.testing.assert_close(network.coefficient(residual, category), torch.ones(20), rtol=0, atol=2e-7)
    assert not torch.equal(zero.trunk_weight, one.trunk_weight)
    fitted = [fit(data, DISAGREEMENT, seed, tmp_path / f"fit-{seed}") for seed in (0, 1)]
    assert not any(torch.equal(a, b) for a, b in zip(*(tensors(one) for one in fitted), strict=True))
    assert (fitted[0].network.coefficient(residual, category) - 1).abs().max() > 1e-3


def test_gradients_do_not_depend_on_the_order_of_threads(data: FitData) -> None:
    """With so many tokens that torch uses several threads."""
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    shapes = ((LATENTS, WIDTH), (64, WIDTH), (64,), (LATENTS, 64), (LATENTS,))
    parameters = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    way = SteeringVectors(torch.zeros(WIDTH), parameters[0], CoefficientNetwork(*parameters[1:]))
    (batch,) = data.model.batches([s for s in data.sentences for _ in range(8)])
    noise = torch.randn(*batch.segments.target.shape, WIDTH, generator=generator)
    torch.set_num_threads(2)
    try:
        first, *others = (
            torch.autograd.grad((noise * way.at(batch.residual(), batch.category)).sum(), parameters) for _ in range(20)
        )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": float("inf")}, {"rate": float("nan")}, {"layer": -1}])
def test_invalid_numbers_are_refused(wrong: dict[str, float]) -> None:
    for recipe in (LikelihoodRecipe, DisagreementRecipe):
        with pytest.raises(pydantic.ValidationError):
            recipe(**{"layer": 1, **wrong})
    with pytest.raises(pydantic.ValidationError):
        DisagreementRecipe(layer=1, top=TOP + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_vectors_fitted_on_a_gpu_are_returned_on_the_cpu(
    data: FitData, tmp_path: Path, recipe: LikelihoodRecipe | DisagreementRecipe
) -> None:
    base = LocalBackend(tiny_model(0).to("cuda"), tiny_tokenizer())
    there = replace(data, model=LocalSteeredModel(base, data.model.prefixes.rows, LAYER))
    fitted = fit(there, recipe, 0, tmp_path)
    assert all(tensor.device.type == "cpu" for tensor in tensors(fitted))
    assert effects_of(there, fitted).loss == approx(effects_of(data, fitted).loss, magnitude=LOSS, terms=100)
