import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lm_eval_hybrid.backends.local import LocalBackend, LocalSequences
from lm_eval_hybrid.errors import HybridError
from tests.oracle.models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.oracle.naive import read, read_steered

LAYER = 1
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
OTHERS = {
    "qwen3": Qwen3Config(**SIZES),
    # Windows that are shorter than the prompts, so that the masks' sliding matters.
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "gemma2": Gemma2Config(**SIZES, sliding_window=4, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=4),
}


def model_of(family: str) -> PreTrainedModel:
    if family not in OTHERS:
        return tiny_model(family, seed=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[family]), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    return model


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def matches(sequences: LocalSequences, model: PreTrainedModel, rows: list[list[int]]) -> bool:
    """Whether what was read of padded rows, partly from the cache, is what each says alone and recomputed."""
    alone = [read(model, row, LAYER) for row in rows]
    reading = sequences.reading
    return close(reading.logits, torch.stack([a for a, _ in alone])) and close(
        reading.residual, torch.stack([b for _, b in alone])
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", *OTHERS])
def test_cached_padded_and_skipped_is_recomputed(family: str) -> None:
    model = model_of(family)
    sequences = LocalBackend(model, tiny_tokenizer()).open(PROMPTS, LAYER, reach=0)
    rows = [list(prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    windows = [1, 0, 3, 1, 50]
    for step in range(4):
        assert matches(sequences, model, rows)
        some = torch.tensor([0, len(rows) - 1])
        steering = torch.randn(2, len(windows), 32, generator=generator) * 2
        logits = sequences.steered(some, steering, windows)
        for i, row in enumerate(some.tolist()):
            for c, window in enumerate(windows):
                assert close(logits[i, c], read_steered(model, rows[row], LAYER, steering[i, c], window))
        if step == 1:
            sequences.keep(torch.tensor([0, 2]))
            rows = [rows[0], rows[2]]
            assert matches(sequences, model, rows)
        tokens = torch.randint(3, VOCABULARY, (len(rows),), generator=generator)
        sequences.extend(tokens)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]


def test_steering_leaves_no_trace_in_what_is_kept() -> None:
    model = tiny_model("llama", seed=0)
    sequences = LocalBackend(model, tiny_tokenizer()).open(PROMPTS, LAYER, reach=8)
    sequences.steered(torch.arange(3), torch.full((3, 2, 32), 100.0), [8, 1])
    sequences.extend(torch.tensor([20, 21, 22]))
    rows = [[*prompt, token] for prompt, token in zip(PROMPTS, (20, 21, 22), strict=True)]
    assert matches(sequences, model, rows)


def test_half_precision_reads_in_float32() -> None:
    model = tiny_model("llama", seed=0).to(torch.bfloat16)
    sequences = LocalBackend(model, tiny_tokenizer()).open(PROMPTS, LAYER, reach=1)
    logits = sequences.steered(torch.tensor([1]), torch.ones(1, 1, 32), [1])
    sequences.extend(torch.tensor([5, 6, 7]))
    assert {logits.dtype, sequences.reading.logits.dtype, sequences.reading.residual.dtype} == {torch.float32}


def test_no_gradients_are_kept() -> None:
    sequences = LocalBackend(tiny_model("llama", seed=0), tiny_tokenizer()).open(PROMPTS, LAYER, reach=1)
    assert not sequences.reading.logits.requires_grad
    assert not sequences.steered(torch.tensor([0]), torch.ones(1, 1, 32), [1]).requires_grad


@pytest.mark.parametrize(("reach", "window"), [(None, 1), (2, 3), (2, 0)])
def test_a_window_beyond_the_reach_is_refused(reach: int | None, window: int) -> None:
    sequences = LocalBackend(tiny_model("llama", seed=0), tiny_tokenizer()).open(PROMPTS, LAYER, reach)
    with pytest.raises(ValueError, match="reach"):
        sequences.steered(torch.tensor([0]), torch.ones(1, 1, 32), [window])


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_a_users_error(layer: int) -> None:
    with pytest.raises(HybridError, match=f"4 layers.*found {layer}"):
        LocalBackend(tiny_model("llama", seed=0), tiny_tokenizer()).open(PROMPTS, layer, None)


def test_the_context_is_the_configs() -> None:
    for family in ("llama", "gpt2"):
        assert LocalBackend(tiny_model(family, seed=0), tiny_tokenizer()).context_length == 256
