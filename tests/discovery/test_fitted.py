from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors import segments
from lm_eval_hybrid.discovery.vectors.fitting import FitData
from lm_eval_hybrid.discovery.vectors.trainer import FittedVectors, VectorEffects
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


@pytest.fixture(scope="module")
def data(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> FitData:
    return fit_data_of(studied, tmp_path_factory.mktemp("effects") / "gates")


def fitted_of(network: bool) -> FittedVectors:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads = CoefficientNetwork(normal(8, WIDTH) / 8, normal(8), normal(LATENTS, 8), torch.ones(LATENTS))
    return FittedVectors(normal(WIDTH), 2 * normal(LATENTS, WIDTH), heads if network else None, {})


@torch.no_grad()
def naive(data: FitData, fitted: FittedVectors) -> VectorEffects:
    """One whole pass per gate."""
    model, gates = data.model.prefixes.base.model._module, data.gates
    count, hits, bias_hits = (torch.zeros(LATENTS, dtype=torch.int64) for _ in range(3))
    losses: dict[str, list[Tensor]] = {"base": [], "bias": [], "all": []}
    for trace, column, target, category in zip(gates.trace, gates.column, gates.target, gates.category, strict=True):
        if not data.held_out[trace]:
            continue
        row = data.model.prefixes.rows[trace]
        direction = fitted.bias + fitted.vectors[category]
        if fitted.network is not None:
            residual = naive_residual(model, LAYER, row)[column : column + 1]
            direction = direction * fitted.network.coefficient(residual, category[None])
        count[category] += 1
        for kind, steering in (("base", 0 * fitted.bias), ("bias", fitted.bias), ("all", direction)):
            logits = naive_logits(model, LAYER, row, int(column), steering.reshape(1, -1))[0]
            losses[kind].append(-logits.log_softmax(-1)[target])
            hit = int(logits.argmax() == target)
            assert not (kind == "base" and hit)
            bias_hits[category] += hit if kind == "bias" else 0
            hits[category] += hit if kind == "all" else 0
    mean = {kind: float(torch.stack(some).mean()) for kind, some in losses.items()}
    return VectorEffects(count, bias_hits, hits, mean["all"], mean["bias"], mean["base"])


@pytest.mark.parametrize("network", [False, True])
def test_effects_are_those_of_a_naive_loop(data: FitData, monkeypatch: pytest.MonkeyPatch, network: bool) -> None:
    fitted = fitted_of(network)
    expected = naive(data, fitted)
    for room in (segments.TOKENS, 7):
        monkeypatch.setattr(segments, "TOKENS", room)
        found = effects_of(data, fitted)
        for name in ("gates", "hits", "bias_hits"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        for name in ("loss", "bias_loss", "base_loss"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    assert expected.hits.sum() > 0 and expected.bias_hits.sum() > 0
    assert found.hit_rate == int(expected.hits.sum()) / int(expected.gates.sum())
    assert found.bias_hit_rate == int(expected.bias_hits.sum()) / int(expected.gates.sum())


def test_a_category_without_gates_has_no_effect(data: FitData) -> None:
    effects = effects_of(data, fitted_of(False))
    assert effects.gates[SILENT] == 0
    found = effects.by_category()
    assert found[SILENT] is None and all(share is not None for share in found[:SILENT])
    assert sum(s * int(n) for s, n in zip(found[:SILENT], effects.gates, strict=False)) == pytest.approx(
        float((effects.hits - effects.bias_hits).sum())
    )


def test_zero_vectors_have_no_effect(data: FitData) -> None:
    fitted = fitted_of(False)
    effects = effects_of(data, replace(fitted, vectors=0 * fitted.vectors))
    assert torch.equal(effects.hits, effects.bias_hits) and effects.loss == effects.bias_loss
    assert effects.by_category() == [0.0, 0.0, 0.0, None]
    nothing = effects_of(data, replace(fitted, vectors=0 * fitted.vectors, bias=0 * fitted.bias))
    assert not nothing.hits.any() and nothing.loss == nothing.base_loss != effects.loss


def test_a_vector_can_have_a_negative_effect(data: FitData) -> None:
    effects = VectorEffects(torch.tensor([4, 0, 2]), torch.tensor([3, 0, 0]), torch.tensor([1, 0, 2]), 1.0, 2.0, 3.0)
    assert effects.by_category() == [-0.5, None, 1.0]
    assert (effects.hit_rate, effects.bias_hit_rate) == (0.5, 0.5)
