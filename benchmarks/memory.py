"""Peak memory of our decoding, over what cannot be spared: the weights of both models, and their caches.

On the CPU in a process of its own: the peak of its resident memory while it decodes, less what it held before the pair
was loaded. On a GPU in this one, by torch's own counting.
"""

import gc
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.contest import decode, decoder_of
from benchmarks.pairs import Pair, embedded
from lm_eval_hybrid.decoding.steering import Steering

Cell = tuple[int, int]  # batch, new tokens


def memory(pair: Pair, cells: Sequence[Cell]) -> dict[Cell, float]:
    """Peak over weights and caches; nothing where it cannot be measured: on a CPU without Linux."""
    if pair.base.device.type == "cuda":
        peaks = _on_gpu(pair, cells)
    elif sys.platform == "linux":
        peaks = _on_cpu(pair, cells)
    else:
        return {}
    return {cell: peak / (_weights(pair) + _caches(pair, *cell)) for cell, peak in zip(cells, peaks, strict=True)}


def _weights(pair: Pair) -> int:
    return sum(p.numel() * p.element_size() for model in (pair.base, pair.thinking) for p in model.parameters())


def _caches(pair: Pair, batch: int, tokens: int) -> int:
    read = sum(len(prompt) + tokens for prompt in pair.prompts[:batch])
    return read * sum(_per_token(model) for model in (pair.base, pair.thinking))


def _per_token(model: PreTrainedModel) -> int:
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize


def _on_gpu(pair: Pair, cells: Sequence[Cell]) -> list[int]:
    decoder, peaks = decoder_of(pair), []
    for batch, tokens in cells:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - _weights(pair)
        decode(decoder, pair.prompts[:batch], tokens)
        peaks.append(torch.cuda.max_memory_allocated() - others)
    return peaks


def _on_cpu(pair: Pair, cells: Sequence[Cell]) -> list[int]:
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for name, model in (("base", pair.base), ("thinking", pair.thinking)):
            model.save_pretrained(Path(folder, name))
        rest = pair.tokenizer, pair.steering, pair.prompts
        return pool.submit(_in_child, folder, *rest, cells, torch.get_num_threads()).result()


def _in_child(
    folder: str,
    tokenizer: PreTrainedTokenizerBase,
    steering: Steering,
    prompts: list[list[int]],
    cells: Sequence[Cell],
    threads: int,
) -> list[int]:
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    small = embedded()
    decode(decoder_of(small), small.prompts[:1], 8)  # brings in whatever is imported late
    del small
    gc.collect()
    before = _resident("VmRSS")
    base, thinking = (AutoModelForCausalLM.from_pretrained(Path(folder, n), dtype="auto") for n in ("base", "thinking"))
    decoder = decoder_of(Pair("", base.eval(), thinking.eval(), tokenizer, steering, prompts))
    peaks = []
    for batch, tokens in cells:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading is not decoding
        decode(decoder, prompts[:batch], tokens)
        peaks.append(_resident("VmHWM") - before)
    return peaks


def _resident(field: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
