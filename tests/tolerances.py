"""How far two correct computations of the same numbers may differ, so that tests hold on any processor.

The order in which a sum is taken depends on the processor's vectors, on the number of threads, and on how rows are
batched. Every layer then rounds otherwise, in proportion to the largest numbers in its sums, so that an element near
zero can differ by many times its own size. So a tolerance follows from the dtype's epsilon, the number of layers, how
many results are summed afterwards, and the largest number; never from the element itself.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

ROUNDINGS = {torch.float32: 32, torch.bfloat16: 2, torch.float16: 2}
"""Epsilons of the largest number by which one layer may differ. The worst that was measured on tiny models, with
AVX-512, AVX2 and neither, is 7 in float32. In half precision sums are taken in float32, and only results rounded."""

LAYERS, LOGITS = 5, 40.0
"""The most layers of the tiny random models in `tests.oracle.models`, and a bound on their logits."""


def tolerance(magnitude: float, layers: int, terms: int = 1, dtype: torch.dtype = torch.float32) -> float:
    """The absolute difference to allow between numbers of at most `magnitude`.

    Args:
        layers: of a model, that the numbers went through; twice as many for gradients.
        terms: how many such numbers are summed; their errors grow like a random walk.
    """
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * layers * math.sqrt(terms) * magnitude


def assert_close(
    found: Tensor, expected: Tensor, layers: int = LAYERS, terms: int = 1, magnitude: float | None = None
) -> None:
    """Check that tensors are equal up to the `tolerance` for their largest element, or for a given magnitude."""
    if magnitude is None:
        magnitude = float(expected.abs().max()) if expected.numel() else 0.0
    atol = tolerance(magnitude, layers, terms, expected.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def approx(expected: Any, terms: int = 1, magnitude: float = LOGITS, layers: int = LAYERS) -> Any:
    """Like `pytest.approx`; by default for a log-probability of a tiny random model, or for a sum of several."""
    return pytest.approx(expected, rel=0, abs=tolerance(magnitude, layers, terms))
