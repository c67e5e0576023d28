"""Drawing a token from a distribution, so that the same seed draws the same token whatever else is decoded.

What is random is one number a token, a keyed hash of what it decides (`decoding/draws.py`); where it falls in the
cumulative distribution, taken in the order of ids, is the token. So neither batch nor draft length matters.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.draws import draw
from lm_eval_hybrid.portable.sampling import chances, drawn


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
