import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_hybrid.discovery import activations
from lm_eval_hybrid.discovery.activations import forward
from tests.discovery.conftest import SAE_LAYER, Studied


def whole(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals after SAE_LAYER and next tokens, by transformers alone."""
    with torch.no_grad():
        out = model(input_ids=ids[None], output_hidden_states=True)
    return out.hidden_states[SAE_LAYER + 1][0], out.logits[0].argmax(-1)


def test_residuals_and_choices_are_the_models_own(studied: Studied) -> None:
    for trace in studied.read:
        residual, choice = whole(studied.thinking.model._module, trace.ids)
        torch.testing.assert_close(trace.residual, residual, rtol=1e-4, atol=1e-4)
        assert torch.equal(trace.thinking_choice, choice)
        assert torch.equal(trace.base_choice, whole(studied.base.model._module, trace.ids)[1])


def test_gates_are_the_disagreements_within_the_trace(studied: Studied) -> None:
    total = 0
    for trace in studied.read:
        gates = trace.gates().tolist()
        asked = range(trace.begin - 1, len(trace.ids) - 1)
        assert gates == [p for p in asked if trace.thinking_choice[p] != trace.base_choice[p]]
        total += len(gates)
    assert total > 20


def test_sentences_point_into_the_whole_sequence(studied: Studied) -> None:
    for trace, source in zip(studied.read, studied.traces, strict=True):
        decoded = [studied.base.tokenizer.decode(trace.ids[s.begin : s.end]) for s in trace.sentences]
        assert [s.text for s in trace.sentences] == decoded
        assert "".join("".join(decoded).split()) == "".join(source.text.split())


def test_logits_are_taken_in_bounded_parts_without_a_difference(
    studied: Studied, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [trace.ids.tolist() for trace in studied.read]
    limit = 3 * 258 * 4 * max(map(len, sequences))  # three of the longest
    monkeypatch.setattr(activations, "LOGITS", limit)
    widths = []
    head = studied.thinking.model._module.lm_head
    handle = head.register_forward_hook(lambda module, inputs, output: widths.append(output.numel() * 4))
    try:
        found = list(forward(studied.thinking, sequences, SAE_LAYER))
    finally:
        handle.remove()
    assert len(widths) >= 4 and max(widths) <= limit
    for trace, (residual, choice) in zip(studied.read, found, strict=True):
        torch.testing.assert_close(trace.residual, residual, rtol=1e-4, atol=1e-4)
        assert torch.equal(trace.thinking_choice, choice)
