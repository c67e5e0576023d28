"""Reproducible random draws for the control arms.

A draw is a keyed hash of what it decides: (seed, stream, position) under a digest of the prompt. So a
document's draws are the same alone or in a batch, cached or not, on any machine.
"""

from collections.abc import Sequence
from hashlib import blake2b


def context_digest(base_prompt_ids: Sequence[int]) -> bytes:
    """16 bytes that stand for a prompt, given as the base model's token ids."""
    return blake2b(",".join(map(str, base_prompt_ids)).encode(), digest_size=16).digest()


def draw(seed: int, stream: str, position: int, key: bytes) -> float:
    """A uniform number in [0, 1) for the generated token at `position`, from 0; `key` is a `context_digest`."""
    digest = blake2b(f"{seed}:{stream}:{position}".encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def pick(n: int, seed: int, stream: str, position: int, key: bytes) -> int:
    """A uniform integer in [0, n)."""
    return int(draw(seed, stream, position, key) * n)
