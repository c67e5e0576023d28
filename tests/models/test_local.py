"""Passes over cached, ragged and branched rows, compared with the same recomputed from the first token."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.local import LocalBackend, LocalSequences, hooked, traced
from tests.oracle.models import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer
from tests.oracle.naive import read, read_steered
from tests.tolerances import assert_close

LAYER, AHEAD = 1, 4
PROMPTS = [[3, 4, 5, 6, 7], [8], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]]


def opened(model: PreTrainedModel, rows: list[list[int]], reach: int | None = 0, layer: int = LAYER) -> LocalSequences:
    """Rows of which all tokens but the last are read."""
    sequences = LocalBackend(model, tiny_tokenizer()).open(len(rows), layer, reach, AHEAD)
    sequences.insert(range(len(rows)), [row[:-1] for row in rows])
    return sequences


def check_read(sequences: LocalSequences, model: PreTrainedModel, rows: list[list[int]], new: Tensor) -> None:
    """Check that reading the last token of each row and `new` [rows, n] gives what recomputing gives."""
    last = torch.tensor([[row[-1]] for row in rows])
    reading = sequences.read(torch.cat([last, new], 1))
    for i, row in enumerate(rows):
        for step in range(new.shape[1] + 1):
            logits, residual = read(model, row + new[i, :step].tolist(), LAYER)
            assert_close(reading.logits[i, step], logits)
            assert_close(reading.residual[i, step], residual)


@pytest.mark.parametrize(("family", "reach"), [*((family, 0) for family in FAMILIES), ("llama", 8), ("gemma3", 8)])
def test_cached_ragged_and_branched_rows_match_recomputed_ones(family: str, reach: int) -> None:
    model = tiny_model(family, seed=0)
    rows = [list(prompt) for prompt in PROMPTS]
    sequences = opened(model, rows, reach)
    generator = torch.Generator().manual_seed(0)
    windows = [1, 3, 8, 1, *([0, 50] if reach == 0 else [])]
    for step in range(4):
        new = torch.randint(3, VOCABULARY, (len(rows), AHEAD - 1), generator=generator)
        check_read(sequences, model, rows, new)
        # At any of the tokens just read, also several times in one row.
        items, ends = [0, len(rows) - 1, 0], [len(rows[0]) + 1, len(rows[-1]) - 1, len(rows[0]) - 1]
        steering = torch.randn(3, len(windows), 32, generator=generator) * 2
        logits = sequences.steered(items, ends, steering, windows)
        for i, (row, end) in enumerate(zip(items, ends, strict=True)):
            tokens = (rows[row] + new[row].tolist())[: end + 1]
            for c, window in enumerate(windows):
                assert_close(logits[i, c], read_steered(model, tokens, LAYER, steering[i, c], window))
        # Each row keeps some of the tokens, and continues with another one.
        kept = torch.randint(0, AHEAD, (len(rows),), generator=generator).tolist()
        rows = [row + part[:n].tolist() for row, part, n in zip(rows, new, kept, strict=True)]
        sequences.rewind([len(row) for row in rows])
        rows = [[*row, 20 + i] for i, row in enumerate(rows)]
        if step == 1:
            sequences.select([2, 0])
            rows = [rows[2], rows[0]]
        if step == 2:
            rows[1] = [9, 9, 8, 7, 6, 5, 4, 3, 11]
            sequences.insert([1], [rows[1][:-1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_hooked_and_traced_passes_give_the_same_bits(family: str) -> None:
    model, said = tiny_model(family, seed=0), []
    for read_pass in (traced, hooked):
        sequences = LocalBackend(model, tiny_tokenizer(), read_pass).open(3, LAYER, 0, AHEAD)
        sequences.insert(range(3), [row[:-1] for row in PROMPTS])
        tokens = torch.tensor([[row[-1], 5, 6] for row in PROMPTS])
        reading = sequences.read(tokens)
        steered = sequences.steered([0, 2], [6, 9], torch.ones(2, 2, 32), [1, 3])
        said.append((reading.logits, reading.residual, steered))
    for through, around in zip(*said, strict=True):
        assert torch.equal(through, around)
    assert not any(module._forward_hooks for module in model.modules()), "hooks are removed"


def test_rows_may_read_different_numbers_of_tokens() -> None:
    model = tiny_model("llama", seed=0)
    sequences = opened(model, PROMPTS)
    sequences.read(torch.tensor([[7, 0, 0], [8, 21, 22], [19, 23, 0]]), [1, 3, 2])
    rows = [PROMPTS[0], [*PROMPTS[1], 21, 22], [*PROMPTS[2], 23]]
    check_read(sequences, model, [[*row, 30] for row in rows], torch.tensor([[31]] * 3))


def test_long_prompts_are_read_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_hybrid.models.local.PASS_TOKENS", 6)
    model = tiny_model("mistral", seed=0)
    check_read(opened(model, PROMPTS, reach=3), model, PROMPTS, torch.tensor([[5, 6]] * 3))


def test_steering_leaves_the_cache_unchanged() -> None:
    model = tiny_model("llama", seed=0)
    sequences = opened(model, PROMPTS, reach=8)
    sequences.read(torch.tensor([[row[-1]] for row in PROMPTS]))
    sequences.steered([0, 1, 2], [len(row) - 1 for row in PROMPTS], torch.full((3, 2, 32), 100.0), [8, 1])
    check_read(sequences, model, [[*row, 20] for row in PROMPTS], torch.tensor([[21]] * 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The same up to rounding: all passes use the same weights, in the same precision."""
    model = tiny_model("llama", seed=0).to(dtype)
    sequences = opened(model, PROMPTS, reach=1)
    reading = sequences.read(torch.tensor([[row[-1]] for row in PROMPTS]))
    steering = torch.ones(3, 1, 32)
    steered = sequences.steered([0, 1, 2], [len(row) - 1 for row in PROMPTS], steering, [1])
    assert (reading.logits.dtype, steered.dtype, reading.residual.dtype) == (dtype, dtype, torch.float32)
    for i, row in enumerate(PROMPTS):
        logits, _ = read(model, row, LAYER)
        assert_close(reading.logits[i, 0], logits)
        expected = read_steered(model, row, LAYER, steering[i, 0].to(dtype), 1)
        assert_close(steered[i, 0], expected)


def test_offloaded_weights(tmp_path: Path) -> None:
    """Some layers on disk, loaded when needed, as `device_map=auto` places a model that does not fit."""
    plain = tiny_model("llama", seed=0)
    plain.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i in (0, 2, 3) else "cpu" for i in range(4)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=str(tmp_path / "off")
    ).eval()
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"}
    sequences = opened(model, PROMPTS)
    reading = sequences.read(torch.tensor([[row[-1]] for row in PROMPTS]))
    steering = torch.ones(3, 2, 32)
    steered = sequences.steered([0, 1, 2], [len(row) - 1 for row in PROMPTS], steering, [1, 0])
    for i, row in enumerate(PROMPTS):
        assert_close(reading.logits[i, 0], read(plain, row, LAYER)[0])
        assert_close(steered[i, 1], read_steered(plain, row, LAYER, steering[i, 1], 0))


def test_no_gradients_are_kept() -> None:
    sequences = opened(tiny_model("llama", seed=0), PROMPTS, reach=1)
    assert not sequences.read(torch.tensor([[5]] * 3)).logits.requires_grad
    assert not sequences.steered([0], [4], torch.ones(1, 1, 32), [1]).requires_grad


@pytest.mark.parametrize(("reach", "window"), [(None, 1), (2, 3), (2, 0)])
def test_a_window_beyond_the_reach_is_refused(reach: int | None, window: int) -> None:
    sequences = opened(tiny_model("llama", seed=0), PROMPTS, reach)
    with pytest.raises(ValueError, match="reach"):
        sequences.steered([0], [3], torch.ones(1, 1, 32), [window])


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_missing_hook_layer_is_refused(layer: int) -> None:
    with pytest.raises(HybridError, match=f"no layer {layer} to hook.* 4 layers"):
        opened(tiny_model("llama", seed=0), PROMPTS, layer=layer)


def test_an_attention_without_masks_is_refused() -> None:
    model = copy.deepcopy(tiny_model("llama", seed=0))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(HybridError, match=r"flash_attention_2 takes no masks.*; pass attn_implementation=sdpa"):
        LocalBackend(model, tiny_tokenizer())


def test_a_model_that_cannot_rewind_is_refused() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(HybridError, match="MambaForCausalLM cannot rewind its past"):
        LocalBackend(AutoModelForCausalLM.from_config(config), tiny_tokenizer())


def test_the_context_length_comes_from_the_configuration() -> None:
    for family in ("llama", "gpt2"):
        assert LocalBackend(tiny_model(family, seed=0), tiny_tokenizer()).context_length == 256
