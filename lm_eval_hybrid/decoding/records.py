"""What was generated, and why each token was: the records that results and pictures are made of."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

TOKENS_SCHEMA = 2  # of the token records in files
Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class TokenRecord:
    """How one generated token came to be.

    Attributes:
        position: index among the generated tokens, from 0.
        token: the emitted token, as an id of the base model's tokenizer.
        text: what it adds to the text. Empty while a character is incomplete: the token that completes it has it.
        steered: the gate opened here.
        changed: steered, and other than `base_choice`. False where the base model is not run.
        category: latent that named the behavior; None where the gate is shut or no category was used.
        behavior: the bundle's key for `category`.
        coefficient: of the candidate taken; None where no candidate was.
        window: of the candidate taken, in positions, 0 for all; None where no candidate was.
        thinking_logprob: natural log of the thinking model's probability of `token`; None where it is not run.
        base_choice: argmax of the unsteered base model (base id); None where it is not run.
        base_logprob: natural log of the probability that the unsteered base model gives its choice.
        thinking_choice: argmax of the thinking model (as a base id); None where it is not run.
        thinking_choice_logprob: natural log of the probability that the thinking model gives its choice.
    """

    position: int
    token: int
    text: str
    steered: bool
    changed: bool
    category: int | None
    behavior: str | None
    coefficient: float | None
    window: int | None
    thinking_logprob: float | None
    base_choice: int | None
    base_logprob: float | None
    thinking_choice: int | None
    thinking_choice_logprob: float | None


@dataclass(frozen=True)
class Generation:
    """One finished answer, without its end-of-sequence token, stop string and whatever followed that.

    Attributes:
        text: up to the stop string.
        records: of the kept tokens: those that begin within `text`. A token that holds both the end of the text
            and the start of the stop string is kept; its record's text is the part before the stop string.
        finish: what ended it: the base's end-of-sequence token, a stop string, or the allowed length.
    """

    text: str
    records: tuple[TokenRecord, ...]
    finish: Finish

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the kept tokens, in the base model's vocabulary."""
        return tuple(record.token for record in self.records)

    @property
    def steered_fraction(self) -> float:
        """Share of kept tokens at which the gate opened; 0.0 for an empty answer."""
        return self._share(sum(record.steered for record in self.records))

    @property
    def changed_fraction(self) -> float:
        """Share of kept tokens that differ from the base model's own choice; 0.0 for an empty answer."""
        return self._share(sum(record.changed for record in self.records))

    @property
    def categories(self) -> Counter[str]:
        """How many kept tokens were steered with each behavior."""
        return Counter(record.behavior for record in self.records if record.behavior is not None)

    def _share(self, count: int) -> float:
        return count / len(self.records) if self.records else 0.0
