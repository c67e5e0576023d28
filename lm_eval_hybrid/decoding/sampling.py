"""Everything random in decoding: sampled tokens, and the random choices of the control arms.

A draw is a keyed hash of (seed, stream, position) under a digest of the prompt; there is no generator whose state could
differ. So a document's draws are the same alone or in a batch, with any draft length, on any machine. A sampled token
is the one at which the cumulative distribution, in the order of token ids, passes the draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.portable.sampling import chances, drawn


def prompt_digest(base_prompt_ids: Sequence[int]) -> bytes:
    """The 16 bytes that key a prompt's draws, from its ids in the base model's vocabulary."""
    return blake2b(",".join(map(str, base_prompt_ids)).encode(), digest_size=16).digest()


def uniform(seed: int, stream: str, position: int, key: bytes) -> float:
    """A uniform number in [0, 1) for the generated token at `position` (from 0); `key` is a `prompt_digest`."""
    digest = blake2b(f"{seed}:{stream}:{position}".encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def uniform_index(n: int, seed: int, stream: str, position: int, key: bytes) -> int:
    """A uniform integer in [0, n)."""
    return int(uniform(seed, stream, position, key) * n)


class TokenDraw(NamedTuple):
    """How one token is drawn: `level` in [0, 1) is where in the filtered cumulative distribution it lies."""

    temperature: float
    top_k: int
    top_p: float
    level: float


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are sampled.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_k: only the k likeliest tokens are kept, with those as likely as the k-th; 0: all.
        top_p: after that, only the likeliest tokens whose probabilities first add up to it; 1: all.
        seed: of the draws.
        repeat: index of this answer among several to one prompt.

    Raises:
        HybridError: a value is out of its range.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        for name, valid, needed in (
            ("temperature", 0 < self.temperature < math.inf, "a finite number above 0"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not valid:
                raise HybridError(f"{name}={getattr(self, name)} is not {needed}; correct --gen_kwargs")

    def draw(self, position: int, key: bytes) -> TokenDraw:
        """How the generated token at `position` is drawn, for the prompt with digest `key`."""
        return TokenDraw(self.temperature, self.top_k, self.top_p, self.level(position, key))

    def level(self, position: int, key: bytes) -> float:
        """The number in [0, 1) that decides the generated token at `position`."""
        return uniform(self.seed, f"sample-{self.repeat}" if self.repeat else "sample", position, key)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[vocab] logits -> [vocab] float64 on the CPU: probabilities up to a factor, zero where filtered out."""
        return chances(logits, self.temperature, self.top_k, self.top_p)


def sample(likeliest: Sequence[int], logits: Tensor, draws: Sequence[TokenDraw | None]) -> list[int]:
    """The tokens of n positions: drawn from logits [n, vocab] where there is a draw, else the likeliest."""
    return [
        token if draw is None else drawn(line, *draw)
        for token, line, draw in zip(likeliest, logits, draws, strict=True)
    ]
