"""A base on a server gives the same losses, gradients and fitted vectors as one in this process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors import segments as module
from lm_eval_hybrid.discovery.vectors.fitting import DisagreementRecipe, FitData, LikelihoodRecipe, fit
from lm_eval_hybrid.discovery.vectors.steered_model import (
    LocalSteeredModel,
    RemoteSteeredModel,
    SteeringVectors,
    TargetDistribution,
)
from lm_eval_hybrid.discovery.vectors.trainer import FittedVectors
from lm_eval_hybrid.models.local import LocalBackend
from tests.decoding.comparing import simulated
from tests.discovery.conftest import Studied
from tests.discovery.naive_steering import (
    LATENTS,
    LAYER,
    WIDTH,
    backend_of,
    effects_of,
    fit_data_of,
    rows_of_tokens,
    some_segments,
)
from tests.tolerances import LAYERS, approx, assert_close


def both(family: str, layer: int) -> tuple[LocalSteeredModel, RemoteSteeredModel]:
    backend = backend_of(family)
    rows = rows_of_tokens()
    there = simulated(backend.model._module, backend.tokenizer)
    return LocalSteeredModel(backend, rows, layer), RemoteSteeredModel(there, rows, layer)


def ways_of() -> list[SteeringVectors]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    network = CoefficientNetwork(normal(8, WIDTH), normal(8), normal(LATENTS, 8), normal(LATENTS))
    return [
        SteeringVectors(normal(WIDTH), normal(LATENTS, WIDTH), network),
        SteeringVectors(torch.zeros(WIDTH)),
        SteeringVectors(normal(WIDTH)),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("tokens", [5, 10_000])
def test_losses_choices_and_gradients(family: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of single positions and longer segments, in many batches and in one; gemma2 has sliding windows."""
    monkeypatch.setattr(module, "TOKENS", tokens)
    here, there = both(family, 1)
    some = some_segments(rows_of_tokens())
    generator = torch.Generator().manual_seed(9)
    targets = TargetDistribution(
        torch.randint(-1, 30, (len(some), 3), generator=generator), torch.randn(len(some), 3, generator=generator)
    )
    for aim in (None, targets):
        ways = ways_of()
        gradients = []
        for base in (here, there):
            readings = list(base.forward(some, ways, aim))
            sum(read.outputs[0].loss for read in readings).backward()
            gradients.append({name: tensor.grad.clone() for name, tensor in ways[0].tensors.items()})
            for tensor in ways[0].tensors.values():
                tensor.grad = None
        for ours, theirs in zip(here.forward(some, ways, aim), readings, strict=True):
            assert all(torch.equal(getattr(ours, n), getattr(theirs, n)) for n in ("target", "category", "index"))
            for a, b in zip(ours.outputs, theirs.outputs, strict=True):
                assert_close(b.losses, a.losses)
                assert_close(b.loss, b.losses.sum(), 1)
                assert torch.equal(a.choice, b.choice)
        for name, gradient in gradients[0].items():
            assert gradient.any(), name
            # Each component sums what every steered token adds to it.
            assert_close(gradients[1][name], gradient, 2 * LAYERS, terms=sum(len(one.targets) for one in some))
    norm = here.residual_norm(some)
    assert there.residual_norm(some) == approx(norm, magnitude=norm)


def test_without_grad_mode_no_gradients_are_requested() -> None:
    here, there = both("llama", 1)
    some = some_segments(rows_of_tokens())
    with torch.no_grad():
        (read,) = there.forward(some, ways_of())
    assert not read.outputs[0].loss.requires_grad
    (ours,) = here.forward(some, [SteeringVectors(torch.ones(WIDTH))])
    assert not ours.outputs[0].loss.requires_grad


@pytest.fixture(scope="module")
def data(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> FitData:
    return fit_data_of(studied, tmp_path_factory.mktemp("there") / "gates")


def moved(data: FitData) -> FitData:
    prefixes = data.model.prefixes
    base: LocalBackend = prefixes.base
    return replace(data, model=RemoteSteeredModel(simulated(base.model._module, base.tokenizer), prefixes.rows, LAYER))


@pytest.mark.parametrize(
    "recipe",
    [
        LikelihoodRecipe(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, examples=3),
        DisagreementRecipe(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, hidden=8),
    ],
    ids=lambda recipe: recipe.recipe,
)
def test_fits_and_effects_agree(data: FitData, tmp_path: Path, recipe: LikelihoodRecipe | DisagreementRecipe) -> None:
    here = fit(data, recipe, 0, tmp_path / "here")
    there = fit(moved(data), recipe, 0, tmp_path / "there")
    for name, curve in here.curves.items():
        held_out = [point.held_out for point in curve]
        assert [point.held_out for point in there.curves[name]] == approx(held_out, terms=10, magnitude=max(held_out))
    for ours, theirs in zip(tensors(here), tensors(there), strict=True):
        # Adam normalizes gradients: of those near zero, rounding determines even the sign.
        assert (ours - theirs).norm() <= 0.02 * ours.norm()
    measured = [effects_of(one, here) for one in (data, moved(data))]
    assert torch.equal(measured[0].hits, measured[1].hits) and torch.equal(measured[0].gates, measured[1].gates)
    assert measured[0].loss == approx(measured[1].loss, terms=10, magnitude=measured[1].loss)


def tensors(fitted: FittedVectors) -> list[Tensor]:
    return [fitted.bias, fitted.vectors, *([] if fitted.network is None else fitted.network.tensors)]
