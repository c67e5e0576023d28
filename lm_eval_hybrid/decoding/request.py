"""What is asked of a decoder: a prompt for each model, and when and how to answer it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_hybrid.decoding.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """One prompt, as token ids of each model's own tokenizer."""

    base_ids: Sequence[int]
    thinking_ids: Sequence[int]


@dataclass(frozen=True)
class Request:
    """One answer to be given.

    Attributes:
        limit: tokens at most, the end-of-sequence token included.
        stop: strings that end the answer.
        sampling: how tokens are drawn; None: the likeliest is taken.
    """

    prompt: Prompt
    limit: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None

    @property
    def tokens(self) -> int:
        """How many a row has in the end, at most, prompt included (where both models write alike)."""
        return max(len(self.prompt.base_ids), len(self.prompt.thinking_ids)) + self.limit
