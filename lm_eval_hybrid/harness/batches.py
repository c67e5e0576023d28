"""Working through jobs in batches that fit into memory."""

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
from lm_eval_hybrid.models.sizes import numbers_a_token

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

_SHARE = 0.7  # of the free memory that caches may take: activations and logits need some, and so may others


def check_sizes(arguments: Mapping[str, Any]) -> None:
    """Check the model arguments `batch_size` and `max_batch_size`, where they are given.

    Raises:
        HybridError: a size that is no whole number of 1 or more (nor `auto` or `auto:N`, for the first).
    """
    for name, pattern, choices in (
        ("batch_size", r"0*[1-9]\d*|auto(:\d+(\.\d+)?)?", "1 or more, or auto"),
        ("max_batch_size", r"0*[1-9]\d*", "1 or more"),
    ):
        size = arguments.get(name)
        if size is not None and not re.fullmatch(pattern, str(size)):
            raise HybridError(f"{name} must be {choices}; found {size!r}; pass --{name} 8")


def in_batches(
    jobs: Sequence[Job], work: Callable[[Sequence[Job]], Sequence[Result]], size: int
) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, in order, `size` jobs worked on together.

    Where a batch runs out of memory the size is halved from there on.
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
            _log.warning("Out of memory with %d texts at once: going on with %d", len(batch), size)
            clear_torch_cache()
            continue
        yield from zip(batch, results, strict=True)
        start += len(batch)


def rows_that_fit(models: Iterable[PreTrainedModel], tokens: int, most: int) -> int:
    """How many rows of `tokens` tokens the models' free memory has room for, from 1 to `most`.

    Counted are keys and values, which are most of what a row takes; what is forgotten here is found out as rows are
    generated, where running out of memory halves them. A machine without an accelerator gives no second chance.
    """
    needed: Counter[torch.device] = Counter()
    for model in models:
        row = tokens * numbers_a_token(model.config) * model.dtype.itemsize
        for device, share in _shares(model).items():
            needed[device] += row * share
    return max(1, min(most, *(int(_SHARE * _free(device) / row) for device, row in needed.items())))


def _shares(model: PreTrainedModel) -> dict[torch.device, float]:
    """Of a model over several devices, how much is where: keys and values are where their layers are.

    Weights that are on none, but fetched when they are needed, count for where the model is read.
    """
    held: Counter[torch.device] = Counter()
    for weight in model.parameters():
        held[model.device if weight.is_meta else weight.device] += weight.nbytes
    return {device: size / held.total() for device, size in held.items()}


def _free(device: torch.device) -> int:
    cuda = device.type == "cuda"
    return torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
