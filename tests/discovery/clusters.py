"""Points around a few directions, with sentences that say which, for tests of what finds them."""

import torch
from torch import Tensor
from torch.nn import functional as F

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def clusters(count: int = 400, width: int = 24, noise: float = 0.05, true: int = 5) -> tuple[Tensor, Tensor]:
    """Points [count, width] around `true` directions, far from the origin, and which direction each is of."""
    torch.manual_seed(0)
    directions, labels = F.normalize(torch.randn(true, width), dim=-1), torch.arange(count) % true
    return 10 + 3 * directions[labels] + noise * torch.randn(count, width), labels


def sentences(labels: Tensor) -> list[str]:
    """A sentence a point: a word of its direction, and one of three that tell nothing."""
    fillers = ("now", "then", "so")
    return [f" {WORDS[label]} {fillers[i % 7 % 3]} {i}." for i, label in enumerate(labels.tolist())]
