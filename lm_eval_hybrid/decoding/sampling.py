"""Drawing a token from a distribution, so that the same seed draws the same token whatever else is decoded.

What is random is one number a token, a keyed hash of what it decides (`decoding/draws.py`); where it falls in the
cumulative distribution, taken in the order of ids, is the token. So neither batch nor draft length matters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.draws import draw


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_k: only the k likeliest tokens, and those as likely as the k-th; 0: all.
        top_p: after that, only the likeliest whose probabilities first add up to it; 1: all.
        seed: of the draws.
        repeat: which of several answers to one prompt this is, from 0.

    Raises:
        HybridError: on values that mean nothing.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("temperature", 0 < self.temperature < math.inf, "a finite number above 0"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not fits:
                raise HybridError(f"{name} must be {wanted}; found {getattr(self, name)}; mend --gen_kwargs")

    def pick(self, logits: Tensor, position: int, key: bytes) -> int:
        """The token drawn from logits [vocab] for the generated token at `position` of the prompt `key` stands for."""
        return drawn(logits, self.temperature, self.top_k, self.top_p, self.level(position, key))

    def level(self, position: int, key: bytes) -> float:
        """The number in [0, 1) that decides the generated token at `position` of the prompt `key` stands for."""
        return draw(self.seed, f"sample-{self.repeat}" if self.repeat else "sample", position, key)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[vocab] logits -> [vocab] float64 on the CPU: chances up to a factor, zero where filtered out."""
        return chances(logits, self.temperature, self.top_k, self.top_p)


# Plain functions: they are also sent to a remote model's server, by their source (`portable/programs.py`).
def drawn(logits: Tensor, temperature: float, top_k: int, top_p: float, level: float) -> int:
    """The token of logits [vocab] at which the cumulative distribution, in the order of ids, passes `level`."""
    found = chances(logits, temperature, top_k, top_p)
    token = int(torch.searchsorted(found.cumsum(0), level * found.sum(), right=True))
    return min(token, int(found.nonzero()[-1]))  # rounding may leave the level at the very end


def chances(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """See `Sampling.probabilities`."""
    scaled = logits.detach().cpu().double() / temperature
    if 0 < top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -torch.inf)
    found = scaled.softmax(0)
    if top_p < 1:
        ordered, order = found.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        found[order[before >= top_p]] = 0.0
    return found
