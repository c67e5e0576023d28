"""Fitting to a base on a server: the losses, gradients and vectors that there are with the base in this process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors import segments as module
from lm_eval_hybrid.discovery.vectors.effects import measure
from lm_eval_hybrid.discovery.vectors.fitted import Fitted
from lm_eval_hybrid.discovery.vectors.steered import SteeredHere, Vectors, Wanted
from lm_eval_hybrid.discovery.vectors.steered_there import SteeredThere
from lm_eval_hybrid.discovery.vectors.vectors import Disagreement, Likelihood, Material, fit
from lm_eval_hybrid.models.local import LocalBackend
from tests.decoding.comparing import simulated
from tests.discovery.conftest import Studied
from tests.discovery.steered import (
    LATENTS,
    LAYER,
    WIDTH,
    backend_of,
    material_of,
    rows_of_tokens,
    some_segments,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # sums are taken in another order


def both(family: str, layer: int) -> tuple[SteeredHere, SteeredThere]:
    backend = backend_of(family)
    rows = rows_of_tokens()
    there = simulated(backend.model._module, backend.tokenizer)
    return SteeredHere(backend, rows, layer), SteeredThere(there, rows, layer)


def ways_of() -> list[Vectors]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    network = CoefficientNetwork(normal(8, WIDTH), normal(8), normal(LATENTS, 8), normal(LATENTS))
    return [
        Vectors(normal(WIDTH), normal(LATENTS, WIDTH), network),
        Vectors(torch.zeros(WIDTH)),
        Vectors(normal(WIDTH)),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("tokens", [5, 10_000])
def test_losses_choices_and_gradients(family: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of places and stretches, in many passes and in one; gemma2 slides."""
    monkeypatch.setattr(module, "TOKENS", tokens)
    here, there = both(family, 1)
    some = some_segments(rows_of_tokens())
    generator = torch.Generator().manual_seed(9)
    wanted = Wanted(
        torch.randint(-1, 30, (len(some), 3), generator=generator), torch.randn(len(some), 3, generator=generator)
    )
    for aim in (None, wanted):
        ways = ways_of()
        gradients = []
        for base in (here, there):
            readings = list(base.read(some, ways, aim))
            sum(read.said[0].total for read in readings).backward()
            gradients.append({name: tensor.grad.clone() for name, tensor in ways[0].tensors.items()})
            for tensor in ways[0].tensors.values():
                tensor.grad = None
        for ours, theirs in zip(here.read(some, ways, aim), readings, strict=True):
            assert all(torch.equal(getattr(ours, n), getattr(theirs, n)) for n in ("target", "category", "number"))
            for a, b in zip(ours.said, theirs.said, strict=True):
                torch.testing.assert_close(b.loss, a.loss, **CLOSE)
                torch.testing.assert_close(b.total, b.loss.sum(), rtol=1e-6, atol=0)
                assert torch.equal(a.choice, b.choice)
        for name, gradient in gradients[0].items():
            assert gradient.any(), name
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)
    assert there.norm(some) == pytest.approx(here.norm(some), rel=1e-5)


def test_without_gradients_none_are_asked_for() -> None:
    here, there = both("llama", 1)
    some = some_segments(rows_of_tokens())
    with torch.no_grad():
        (read,) = there.read(some, ways_of())
    assert not read.said[0].total.requires_grad
    (ours,) = here.read(some, [Vectors(torch.ones(WIDTH))])
    assert not ours.said[0].total.requires_grad


@pytest.fixture(scope="module")
def material(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material_of(studied, tmp_path_factory.mktemp("there") / "gates")


def moved(material: Material) -> Material:
    pasts = material.base.pasts
    base: LocalBackend = pasts.base
    return replace(material, base=SteeredThere(simulated(base.model._module, base.tokenizer), pasts.rows, LAYER))


@pytest.mark.parametrize(
    "recipe",
    [
        Likelihood(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, examples=3),
        Disagreement(layer=LAYER, bias_epochs=2, epochs=2, rate=0.001, batch=4, hidden=8),
    ],
    ids=lambda recipe: recipe.recipe,
)
def test_a_fit(material: Material, tmp_path: Path, recipe: Likelihood | Disagreement) -> None:
    here = fit(material, recipe, 0, tmp_path / "here")
    there = fit(moved(material), recipe, 0, tmp_path / "there")
    for name, curve in here.curves.items():
        assert [point.held_out for point in there.curves[name]] == pytest.approx(
            [point.held_out for point in curve], rel=1e-4
        )
    for ours, theirs in zip(tensors(here), tensors(there), strict=True):
        # Adam divides by a gradient's size: of those that are nearly zero even the sign is arithmetic's.
        assert (ours - theirs).norm() <= 0.02 * ours.norm()
    measured = [measure(one, here) for one in (material, moved(material))]
    assert torch.equal(measured[0].hits, measured[1].hits) and torch.equal(measured[0].gates, measured[1].gates)
    assert measured[0].loss == pytest.approx(measured[1].loss, rel=1e-4)


def tensors(fitted: Fitted) -> list[Tensor]:
    return [fitted.bias, fitted.vectors, *([] if fitted.network is None else fitted.network.tensors)]
