"""Working through jobs in batches that fit into memory."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.utils_hf import clear_torch_cache

from lm_eval_hybrid.errors import HybridError

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


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
    jobs: Sequence[Job], work: Callable[[Sequence[Job]], Sequence[Result]], size: int, shrink: bool
) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, in order, `size` jobs worked on together.

    Args:
        shrink: halve the size, from there on, where a batch runs out of memory; otherwise that is an error.
    """
    start = 0
    while start < len(jobs):
        batch = jobs[start : start + size]
        try:
            results = work(batch)
        except RuntimeError as error:
            if not shrink or len(batch) == 1 or not should_reduce_batch_size(error):
                raise
            size = len(batch) // 2
            _log.info("Out of memory: going on with batches of %d", size)
            clear_torch_cache()
            continue
        yield from zip(batch, results, strict=True)
        start += len(batch)
