"""How far two correct computations of the same numbers may differ, so that tests hold on any processor.

The order in which a sum is taken depends on the processor's vectors, on threads, and on how rows are batched. Each
layer's sums then differ by some roundings of the largest numbers in them, and so an element near zero can differ by
many times its own size. So a tolerance follows from the dtype's epsilon, from how many layers the numbers went through,
from how many terms were summed afterwards, and from the largest number, never from the element itself.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

ROUNDINGS = {torch.float64: 32, torch.float32: 32, torch.bfloat16: 2, torch.float16: 2}
"""Epsilons by which a layer may change the largest number. Measured on tiny models with AVX-512, AVX2 and neither, the
worst was 7 in float32. In half precision sums are taken in float32, and only results are rounded."""


def tolerance(magnitude: float, layers: int, terms: int = 1, dtype: torch.dtype = torch.float32) -> float:
    """The absolute difference to allow between numbers of at most `magnitude`.

    Args:
        layers: of a model, that the numbers went through; twice as many for gradients, and 1 for a few sums.
        terms: how many such numbers were summed; their errors add up like a random walk.
    """
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * layers * math.sqrt(terms) * magnitude


def assert_close(found: Tensor, expected: Tensor, layers: int, terms: int = 1) -> None:
    """Check that a tensor is the expected one, as far as `tolerance` goes for its largest element."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    atol = tolerance(largest, layers, terms, expected.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def approx(expected: Any, magnitude: float, layers: int, terms: int = 1) -> Any:
    """A number, or numbers, as `pytest.approx` takes them, computed from others of at most `magnitude`."""
    return pytest.approx(expected, rel=0, abs=tolerance(magnitude, layers, terms))
