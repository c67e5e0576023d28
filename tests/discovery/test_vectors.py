from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery import vectors as module
from lm_eval_hybrid.discovery.vectors import VectorRecipe, fit, hit_rates, read_gates, steered_logits
from tests.discovery.conftest import Studied
from tests.tiny_system import tiny_model, tiny_tokenizer

LAYER, WIDTH, LATENTS = 1, 32, 3


def encoder() -> SparseEncoder:
    torch.manual_seed(2)
    return SparseEncoder(torch.zeros(WIDTH), torch.zeros(WIDTH), torch.randn(LATENTS, WIDTH), torch.zeros(LATENTS))


def naively(model: PreTrainedModel, ids: Tensor, steering: Tensor) -> Tensor:
    """Next-token logits with the last position's residual steered by a plain forward hook, without a cache."""

    def add(module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -1] += steering
        return output

    handle = model.model.layers[LAYER].register_forward_hook(add)
    try:
        with torch.no_grad():
            return model(input_ids=ids[None]).logits[0, -1]
    finally:
        handle.remove()


def test_steered_logits_are_those_of_the_prefix_with_its_last_position_steered(studied: Studied) -> None:
    some = studied.read[:4]
    gates = read_gates(studied.base, encoder(), some, LAYER)
    steering = torch.randn(len(gates.target), WIDTH, generator=torch.Generator().manual_seed(0))
    logits = steered_logits(studied.base, gates, steering, LAYER).detach()
    for row, (trace, position) in enumerate(zip(gates.trace.tolist(), gates.position.tolist(), strict=True)):
        expected = naively(studied.base.model._module, some[trace].ids[: position + 1], steering[row])
        torch.testing.assert_close(logits[row], expected, rtol=1e-3, atol=1e-3)


def test_fitting_raises_hits_leaves_the_weights_alone_and_repeats(studied: Studied) -> None:
    recipe = VectorRecipe(layer=LAYER, bias_epochs=2, epochs=20, rate=0.1, batch=4)
    before = [p.clone() for p in studied.base.model._module.parameters()]
    bias, vectors = fit(studied.base, encoder(), studied.read, recipe, seed=0)
    assert bias.shape == (WIDTH,) and vectors.shape == (LATENTS, WIDTH)
    rates = hit_rates(studied.base, encoder(), studied.read, LAYER, bias, vectors)
    nothing = hit_rates(studied.base, encoder(), studied.read, LAYER, 0 * bias, 0 * vectors)
    assert nothing == {"bias": 0.0, "vectors": 0.0}  # these are the disagreements
    assert rates["vectors"] > rates["bias"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, studied.base.model._module.parameters(), strict=True))
    again = fit(studied.base, encoder(), studied.read, recipe, seed=0)
    assert torch.equal(again[0], bias) and torch.equal(again[1], vectors)


def test_a_latent_that_never_fires_keeps_a_zero_vector(studied: Studied) -> None:
    deaf = encoder()
    deaf.bias[1] = -1e9
    _, vectors = fit(studied.base, deaf, studied.read[:4], VectorRecipe(layer=LAYER, bias_epochs=1, epochs=2), seed=0)
    assert not vectors[1].any() and vectors[[0, 2]].any(-1).all()


def test_measuring_in_small_parts_gives_the_same_rates(studied: Studied, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    arguments = (studied.base, encoder(), studied.read, LAYER, torch.randn(WIDTH), torch.randn(LATENTS, WIDTH))
    whole = hit_rates(*arguments)
    rows = []
    steered = module.steered_logits
    monkeypatch.setattr(module, "steered_logits", lambda *given: rows.append(len(given[2])) or steered(*given))
    monkeypatch.setattr(module, "COPIED", 200_000)
    assert hit_rates(*arguments) == whole
    assert 1 <= max(rows) < 10 and sum(rows) == 2 * sum(len(trace.gates()) for trace in studied.read)


def test_traces_without_a_disagreement_do_no_harm(studied: Studied) -> None:
    agreed, other = (replace(studied.read[i], base_choice=studied.read[i].thinking_choice) for i in (0, 1))
    traces = [agreed, studied.read[2], other]
    recipe = VectorRecipe(layer=LAYER, bias_epochs=1, epochs=1, batch=1)
    bias, vectors = fit(studied.base, encoder(), traces, recipe, seed=0)
    assert bias.any() and bias.isfinite().all() and vectors.isfinite().all()
    arguments = (LAYER, bias, vectors)
    assert hit_rates(studied.base, encoder(), traces, *arguments) == hit_rates(
        studied.base, encoder(), traces[1:2], *arguments
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_was_fitted_on_a_gpu_is_measured_there(studied: Studied) -> None:
    base = LocalBackend(tiny_model(0).to("cuda"), tiny_tokenizer())
    recipe = VectorRecipe(layer=LAYER, bias_epochs=1, epochs=1)
    bias, vectors = fit(base, encoder(), studied.read, recipe, seed=0)
    assert bias.device.type == vectors.device.type == "cpu"
    assert set(hit_rates(base, encoder(), studied.read, LAYER, bias, vectors)) == {"bias", "vectors"}
