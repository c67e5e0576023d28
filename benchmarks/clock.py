"""Wall-clock times of things that take turns, so that a busy moment of the machine falls on all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times, from rounds in which both were measured: the median, and what it lay between."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: list[float], below: list[float]) -> "Ratio":
        """Round by round: above / below."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        digits = 2 if self.median < 9.995 else 1
        text = f"{self.median:.{digits}f}"
        return text if self.low == self.high else f"{text} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """(wall-clock seconds, result) of one call; a GPU has finished too."""
    gc.collect()
    _wait()
    begun = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - begun, result


def take_turns(
    work: Mapping[K, Callable[[], Any]], rounds: int, budget: float = float("inf")
) -> tuple[dict[K, list[float]], dict[K, Any]]:
    """Seconds of every call of each, and its last result. The order turns round from one round to the next.

    Args:
        rounds: of all calls; no new one is begun after `budget` seconds.
    """
    taken: dict[K, list[float]] = {name: [] for name in work}
    results: dict[K, Any] = {}
    begun = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - begun > budget:
            break
        for name in list(work)[:: -1 if turn % 2 else 1]:
            spent, results[name] = seconds(work[name])
            taken[name].append(spent)
    return taken, results


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
