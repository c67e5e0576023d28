"""Working through jobs in batches that fit into memory."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.utils_hf import clear_torch_cache

_log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


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
