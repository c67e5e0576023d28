"""A run's place on the machine: batch sizes that fit memory, ranks of a launcher, and errors shown in one line."""

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.utils_hf import clear_torch_cache
from transformers import PreTrainedModel

from lm_eval_hybrid.common.errors import HybridError, show_plainly
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


# The harness's own message when a task has no documents (lm_eval/api/task.py).
_NO_DOCUMENTS = "did not find any docs"


def processes() -> int:
    """How many processes the launcher (torchrun, accelerate) started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def enable_cpu_ranks() -> None:
    """Let accelerate form a process group without GPUs; by default it treats such processes as unrelated."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def install_excepthook() -> None:
    """Show uncaught user errors in one line, including the harness's error for a run without documents.

    Calling it again changes nothing.
    """
    show_plainly()
    previous = sys.excepthook
    if getattr(previous, "shows_empty_runs", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ValueError) and _NO_DOCUMENTS in str(error):
            needed = processes()
            each = "" if needed == 1 else f" for each of the {needed} processes"
            error = HybridError(
                f"the run has no documents (as with --limit 0); at least one is needed{each}; pass --limit {needed} "
                "or more, or leave --limit out"
            )
        previous(type(error), error, trace)

    hook.shows_hybrid_errors = hook.shows_empty_runs = True  # type: ignore[attr-defined]  # marks a function object
    sys.excepthook = hook
