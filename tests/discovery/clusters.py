"""Points around a few directions, and sentences that name the direction, for tests of the taxonomy."""

import torch
from torch import Tensor
from torch.nn import functional as F

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def clusters(count: int = 400, width: int = 24, noise: float = 0.05, true: int = 5) -> tuple[Tensor, Tensor]:
    """Points [count, width] around `true` directions, far from the origin, and the direction of each."""
    torch.manual_seed(0)
    directions, labels = F.normalize(torch.randn(true, width), dim=-1), torch.arange(count) % true
    return 10 + 3 * directions[labels] + noise * torch.randn(count, width), labels


def sentences(labels: Tensor) -> list[str]:
    """A sentence for each point: a word for its direction, and one of three filler words."""
    fillers = ("now", "then", "so")
    return [f" {WORDS[label]} {fillers[i % 7 % 3]} {i}." for i, label in enumerate(labels.tolist())]
