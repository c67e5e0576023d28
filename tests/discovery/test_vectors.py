import math
from dataclasses import replace
from pathlib import Path

import pydantic
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.activations.disagreements import NONE, TOP, Disagreements
from lm_eval_hybrid.discovery.vectors import vectors as module
from lm_eval_hybrid.discovery.vectors.effects import measure
from lm_eval_hybrid.discovery.vectors.fitted import Fitted
from lm_eval_hybrid.discovery.vectors.segments import Segment, pack
from lm_eval_hybrid.discovery.vectors.steered import SteeredHere, Vectors
from lm_eval_hybrid.discovery.vectors.vectors import Disagreement, Likelihood, Material, fit
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import Studied
from tests.discovery.steered import DEAF, LATENTS, LAYER, WIDTH, material_of, naively, unsteered
from tests.tiny_system import tiny_model, tiny_tokenizer

LIKELIHOOD = Likelihood(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4)
DISAGREEMENT = Disagreement(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, hidden=8)
RECIPES = (LIKELIHOOD, DISAGREEMENT)


@pytest.fixture(scope="module")
def material(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material_of(studied, tmp_path_factory.mktemp("vectors") / "gates")


def tensors(fitted: Fitted) -> list[Tensor]:
    network = [] if fitted.network is None else list(vars(fitted.network).values())
    return [fitted.bias, fitted.vectors, *network]


def assert_same(one: Fitted, other: Fitted) -> None:
    assert one.curves == other.curves
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@torch.no_grad()
def naive_cross_entropy(material: Material, fitted: Fitted) -> float:
    """Mean over the tokens of held-out sentences."""
    model, losses = material.base.pasts.base.model._module, []
    for segment in material.sentences:
        if material.held_out[segment.row]:
            steering = (fitted.bias + fitted.vectors[segment.category]).expand(len(segment.targets), -1)
            logits = naively(model, LAYER, material.base.pasts.rows[segment.row], segment.begin, steering)
            losses += [-row.log_softmax(-1)[token] for row, token in zip(logits, segment.targets, strict=True)]
    return float(torch.stack(losses).mean())


def naive_targets(gates: Disagreements, gate: int, top: int) -> list[tuple[int, float]]:
    """The likeliest tokens that cross, with probabilities that add up to 1."""
    crossing = [
        (token, logprob)
        for token, logprob in zip(gates.top[gate].tolist(), gates.top_logprob[gate].tolist(), strict=True)
        if token != NONE
    ][:top]
    total = sum(math.exp(logprob) for _, logprob in crossing)
    return [(token, math.exp(logprob) / total) for token, logprob in crossing]


@torch.no_grad()
def naive_divergence(material: Material, fitted: Fitted, top: int) -> float:
    """Mean over held-out gates."""
    model, gates, losses = material.base.pasts.base.model._module, material.gates, []
    for gate, (trace, column, category) in enumerate(zip(gates.trace, gates.column, gates.category, strict=True)):
        if not material.held_out[trace]:
            continue
        row = material.base.pasts.rows[trace]
        direction = fitted.bias + fitted.vectors[category]
        if fitted.network is not None:
            residual = unsteered(model, LAYER, row)[column : column + 1]
            direction = direction * fitted.network.coefficient(residual, category[None])
        ours = naively(model, LAYER, row, int(column), direction.reshape(1, -1))[0].log_softmax(-1)
        losses.append(
            sum(p * (torch.tensor(p).log().item() - float(ours[token])) for token, p in naive_targets(gates, gate, top))
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_a_recipe_lowers_the_held_out_loss_leaves_the_weights_alone_and_repeats(
    material: Material, tmp_path: Path, recipe: Likelihood | Disagreement
) -> None:
    weights = list(material.base.pasts.base.model._module.parameters())
    before = [weight.clone() for weight in weights]
    fitted = fit(material, recipe, 0, tmp_path / "a")
    assert fitted.bias.shape == (WIDTH,) and fitted.vectors.shape == (LATENTS, WIDTH)
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" and not t.requires_grad for t in tensors(fitted))
    assert (fitted.network is None) == (recipe is LIKELIHOOD)
    start, bias, best = (
        fitted.curves["bias"][0].held_out,
        min(point.held_out for point in fitted.curves["bias"]),
        min(point.held_out for point in fitted.curves["vectors"]),
    )
    assert best < bias < start
    assert fitted.curves["vectors"][0].held_out == pytest.approx(bias, rel=1e-5)  # they begin where the bias ended
    assert all(
        torch.equal(a, b) for a, b in zip(before, material.base.pasts.base.model._module.parameters(), strict=True)
    )
    assert_same(fit(material, recipe, 0, tmp_path / "b"), fitted)
    assert_same(fit(material, recipe, 0, tmp_path / "a"), fitted)


def test_the_likelihood_recipes_loss_is_the_cross_entropy_of_the_sentences(material: Material, tmp_path: Path) -> None:
    fitted = fit(material, LIKELIHOOD, 0, tmp_path)
    nothing = Fitted(0 * fitted.bias, 0 * fitted.vectors, None, {})
    assert fitted.curves["bias"][0].held_out == pytest.approx(naive_cross_entropy(material, nothing), rel=1e-5)
    best = min(point.held_out for point in fitted.curves["vectors"])
    assert best == pytest.approx(naive_cross_entropy(material, fitted), rel=1e-5)


@pytest.mark.parametrize("top", [1, 3, TOP])
def test_the_disagreement_recipes_loss_is_the_divergence_from_what_crosses(
    material: Material, tmp_path: Path, top: int
) -> None:
    """Also where the likeliest tokens do not cross, or none does."""
    found = material.gates.top.clone()
    found[::3, 0], found[1::5, 2:] = NONE, NONE
    last = int(material.gates.trace.max()) == material.gates.trace
    found[last.nonzero()[0, 0]] = NONE
    material = replace(material, gates=replace(material.gates, top=found))
    fitted = fit(material, replace(DISAGREEMENT, top=top, epochs=1, bias_epochs=1), 0, tmp_path)
    nothing = Fitted(0 * fitted.bias, 0 * fitted.vectors, None, {})
    assert fitted.curves["bias"][0].held_out == pytest.approx(naive_divergence(material, nothing, top), rel=1e-4)
    best = min(point.held_out for point in fitted.curves["vectors"])
    assert best == pytest.approx(naive_divergence(material, fitted, top), rel=1e-4)
    assert best < fitted.curves["bias"][0].held_out


def test_tokens_that_begin_with_the_same_base_token_are_one_target(material: Material) -> None:
    gates = replace(
        material.gates.of(torch.tensor([0])),
        top=torch.tensor([[5, 7, 7, NONE, 9, NONE, 5, 7], [NONE] * 8]),
        top_logprob=torch.tensor([[0.25, 0.2, 0.15, 0.14, 0.1, 0.08, 0.05, 0.03], [0.125] * 8]).log(),
    )
    wanted = module._wanted(gates, 3)
    tokens, logprobs = wanted.tokens, wanted.logprobs
    assert tokens.tolist() == [[7, 5, 9], [NONE] * 3]
    torch.testing.assert_close(logprobs[0].exp(), torch.tensor([0.38, 0.30, 0.10]) / 0.78)
    assert not logprobs[1].any()
    assert module._wanted(gates, 1).logprobs.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_a_latent_without_gates_and_sentences_keeps_a_zero_vector(
    material: Material, tmp_path: Path, recipe: Likelihood | Disagreement
) -> None:
    fitted = fit(material, recipe, 0, tmp_path)
    assert fitted.vectors[:DEAF].any(-1).all() and not fitted.vectors[DEAF].any()
    if fitted.network is not None:
        assert not fitted.network.heads_weight[DEAF].any()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_a_category_learns_alone_what_it_learns_beside_the_others(
    material: Material, tmp_path: Path, recipe: Likelihood | Disagreement
) -> None:
    """Adam's first step has the sign of the gradient, whatever its length."""
    recipe = replace(recipe, bias_epochs=0, epochs=1, batch=100)

    def first_step(some: Material, folder: Path) -> Tensor:
        """Also where it did not lower the held-out loss, and so is not the result."""
        fit(some, recipe, 0, folder)
        return load_file(folder / "vectors.descent.safetensors")["vectors"]

    together = first_step(material, tmp_path / "all")
    for category in range(DEAF):
        there = material.gates.category == category
        gates = {name: value if name == "places" else value[there] for name, value in vars(material.gates).items()}
        own = [s for s in material.sentences if s.category == category]
        alone = replace(
            material,
            gates=Disagreements(**gates),
            sentences=[replace(s, number=i) for i, s in enumerate(own)],
            activation=material.activation[[s.number for s in own]],
        )
        found = first_step(alone, tmp_path / str(category))
        assert found[category].all() and torch.equal(found[category].sign(), together[category].sign())
        assert not found[[other for other in range(LATENTS) if other != category]].any()


def naive_examples(material: Material, most: int) -> list[int]:
    """By number: strongest first, of twice as many those least likely."""
    model, chosen = material.base.pasts.base.model._module, []
    for category in range(LATENTS):
        own = [s for s in material.sentences if s.category == category and not material.held_out[s.row]]
        strongest = sorted(own, key=lambda s: -float(material.activation[s.number]))[: 2 * most]
        loss = {}
        for s in strongest:
            still = torch.zeros(len(s.targets), WIDTH)
            with torch.no_grad():
                logits = naively(model, LAYER, material.base.pasts.rows[s.row], s.begin, still)
            loss[s.number] = -float(logits.log_softmax(-1)[range(len(s.targets)), list(s.targets)].mean())
        chosen += sorted(loss, key=lambda number: -loss[number])[:most]
    return sorted(chosen)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
def test_examples_are_the_least_likely_of_the_strongest(material: Material, most: int) -> None:
    chosen = module._examples(material, material.sentence_segments(held_out=False), most)
    assert [segment.number for segment in chosen] == naive_examples(material, most)


def test_a_sentence_without_base_tokens_is_left_out(material: Material, tmp_path: Path) -> None:
    empty = [Segment(row, 3, (), 0, len(material.sentences) + row) for row in (0, len(material.held_out) - 1)]
    more = replace(
        material, sentences=[*material.sentences, *empty], activation=torch.ones(len(material.sentences) + 12)
    )
    assert len(more.sentence_segments(held_out=True)) == len(material.sentence_segments(held_out=True))
    alike = replace(material, activation=torch.ones(len(material.sentences)))
    recipe = replace(LIKELIHOOD, examples=2)
    assert_same(fit(more, recipe, 0, tmp_path / "more"), fit(alike, recipe, 0, tmp_path / "alike"))


def test_a_network_begins_with_coefficient_one_and_differs_by_seed(material: Material, tmp_path: Path) -> None:
    recipe = replace(DISAGREEMENT, bias_epochs=0, epochs=0)
    zero, one = (fit(material, recipe, seed, tmp_path / str(seed)).network for seed in (0, 1))
    residual = 5 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    category = torch.arange(20) % LATENTS
    for network in (zero, one):
        torch.testing.assert_close(network.coefficient(residual, category), torch.ones(20), rtol=0, atol=2e-7)
    assert not torch.equal(zero.trunk_weight, one.trunk_weight)
    fitted = [fit(material, DISAGREEMENT, seed, tmp_path / f"fit-{seed}") for seed in (0, 1)]
    assert not any(torch.equal(a, b) for a, b in zip(*(tensors(one) for one in fitted), strict=True))
    assert (fitted[0].network.coefficient(residual, category) - 1).abs().max() > 1e-3


def test_several_threads_add_gradients_up_in_one_order(material: Material) -> None:
    """Where there is so much that torch shares it out among them."""
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    shapes = ((LATENTS, WIDTH), (64, WIDTH), (64,), (LATENTS, 64), (LATENTS,))
    parameters = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    way = Vectors(torch.zeros(WIDTH), parameters[0], CoefficientNetwork(*parameters[1:]))
    (packed,) = pack(material.base.pasts, [s for s in material.sentences for _ in range(8)])
    noise = torch.randn(*packed.layout.target.shape, WIDTH, generator=generator)
    torch.set_num_threads(2)
    try:
        first, *others = (torch.autograd.grad((noise * way.added(packed)).sum(), parameters) for _ in range(20))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": float("inf")}, {"rate": float("nan")}, {"layer": -1}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    for recipe in (Likelihood, Disagreement):
        with pytest.raises(pydantic.ValidationError):
            recipe(**{"layer": 1, **wrong})
    with pytest.raises(pydantic.ValidationError):
        Disagreement(layer=1, top=TOP + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.recipe)
def test_what_was_fitted_on_a_gpu_is_on_the_cpu(
    material: Material, tmp_path: Path, recipe: Likelihood | Disagreement
) -> None:
    base = LocalBackend(tiny_model(0).to("cuda"), tiny_tokenizer())
    there = replace(material, base=SteeredHere(base, material.base.pasts.rows, LAYER))
    fitted = fit(there, recipe, 0, tmp_path)
    assert all(tensor.device.type == "cpu" for tensor in tensors(fitted))
    assert measure(there, fitted).loss == pytest.approx(measure(material, fitted).loss, rel=1e-3)
