"""Batch sizes: checking those that are given, and finding one that fits into memory."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.utils_hf import clear_torch_cache
from transformers import PreTrainedModel

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.sizes import cached_numbers

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

_CACHE_SHARE = 0.7  # of free memory, for KV caches; activations, logits and other programs need the rest


def check_batch_sizes(arguments: Mapping[str, Any]) -> None:
    """Check the model arguments `batch_size` and `max_batch_size`, where they are given.

    Raises:
        HybridError: a size is not an integer of 1 or more (`batch_size` may also be `auto` or `auto:N`).
    """
    for name, pattern, choices in (
        ("batch_size", r"0*[1-9]\d*|auto(:\d+(\.\d+)?)?", "an integer of 1 or more, or auto,"),
        ("max_batch_size", r"0*[1-9]\d*", "an integer of 1 or more"),
    ):
        size = arguments.get(name)
        if size is not None and not re.fullmatch(pattern, str(size)):
            raise HybridError(f"{name}={size!r} is not a batch size; {choices} is needed; pass --{name} 8")


def in_batches(
    jobs: Sequence[Job], work: Callable[[Sequence[Job]], Sequence[Result]], size: int
) -> Iterator[tuple[Job, Result]]:
    """Yield every job with its result, in order, working on `size` jobs at once.

    A batch that runs out of memory is halved, and later batches keep the smaller size.
    """
    start = 0
    while start < len(jobs):
        batch = jobs[start : start + size]
        try:
            results = work(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not should_reduce_batch_size(error):
                raise
            size = len(batch) // 2
            _log.warning("Out of memory with a batch of %d: continuing with %d", len(batch), size)
            clear_torch_cache()
            continue
        yield from zip(batch, results, strict=True)
        start += len(batch)


def largest_batch(models: Iterable[PreTrainedModel], tokens: int, limit: int) -> int:
    """The number of sequences of `tokens` tokens whose KV caches fit into free memory, from 1 to `limit`.

    It is an estimate: decoding halves the batch if memory runs out all the same. On a machine without an accelerator
    there is no such second chance, since the system ends the process.
    """
    needed: dict[torch.device, float] = {}
    for model in models:
        bytes_a_row = tokens * cached_numbers(model.config) * model.dtype.itemsize
        for device, share in _device_shares(model).items():
            needed[device] = needed.get(device, 0.0) + bytes_a_row * share
    return max(1, min(limit, *(int(_CACHE_SHARE * _free_bytes(device) / row) for device, row in needed.items())))


def _device_shares(model: PreTrainedModel) -> dict[torch.device, float]:
    """The share of a model's weights on each device; keys and values lie beside their layers' weights.

    Offloaded weights (on the meta device) count for the device that the model computes on.
    """
    held: Counter[torch.device] = Counter()
    for weight in model.parameters():
        held[model.device if weight.is_meta else weight.device] += weight.nbytes
    return {device: size / held.total() for device, size in held.items()}


def _free_bytes(device: torch.device) -> int:
    cuda = device.type == "cuda"
    return torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
