"""Weights in 4 and 8 bits, where bitsandbytes is installed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lm_eval_hybrid.models.local import LocalBackend
from tests.oracle.models import tiny_model, tiny_tokenizer
from tests.oracle.naive import read, read_steered
from tests.tolerances import tolerance

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights(tmp_path: Path, bits: int) -> None:
    tiny_model("llama", 0, width=64).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings).eval()
    rows = [[5, 6, 7, 8], [9, 10]]
    sequences = LocalBackend(model, tiny_tokenizer()).open(2, 1, 0, 1)
    sequences.insert([0, 1], [row[:-1] for row in rows])
    reading = sequences.read(torch.tensor([[row[-1]] for row in rows]))
    steering = torch.ones(2, 1, 64)
    steered = sequences.steered([0, 1], [3, 1], steering, [1])
    for i, row in enumerate(rows):
        logits = read(model, row, 1)[0]
        # In 8 bits activations are rounded too, by the largest of those read together: passes of other shapes differ.
        atol = 0.3 if bits == 8 else tolerance(float(logits.abs().max()), 4, dtype=logits.dtype)
        assert torch.allclose(reading.logits[i, 0], logits, rtol=0, atol=atol)
        expected = read_steered(model, row, 1, steering[i, 0].to(model.dtype), 1)
        assert torch.allclose(steered[i, 0], expected, rtol=0, atol=atol)
