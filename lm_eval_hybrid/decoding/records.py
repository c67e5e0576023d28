"""What was generated, and why each token was emitted: the records that results and reports are made of."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

TOKENS_SCHEMA = 2  # version of the token records in files
Finish = Literal["eos", "stop", "length"]


class Emission(NamedTuple):
    """The token emitted where the gate opened, with the settings of the selected candidate if there was one."""

    token: int
    category: int | None = None
    coefficient: float | None = None
    window: int | None = None


class TokenDecision(NamedTuple):
    """The decision at one position of a row: the fields of `TokenRecord` that do not depend on the text."""

    token: int
    steered: bool = False
    changed: bool = False
    category: int | None = None
    coefficient: float | None = None
    window: int | None = None
    base_choice: int | None = None
    base_logprob: float | None = None
    thinking_choice: int | None = None
    thinking_choice_logprob: float | None = None
    thinking_logprob: float | None = None


@dataclass(frozen=True)
class TokenRecord:
    """How one generated token came about.

    Attributes:
        position: index among the generated tokens, from 0.
        token: the emitted token, as an id of the base model's tokenizer.
        text: what it adds to the text. Empty while a character is incomplete: the token that completes it has it all.
        steered: the gate opened here.
        changed: steered, and different from `base_choice`. False where the base model is not run.
        category: latent that named the behavior; None where the gate is shut or no category was used.
        behavior: the bundle's key for `category`.
        coefficient: of the selected candidate; None where there was none.
        window: of the selected candidate, in positions, 0 for all; None where there was none.
        thinking_logprob: natural log of the thinking model's probability of `token`; None where it is not run.
        base_choice: argmax of the unsteered base model (base id); None where it is not run.
        base_logprob: natural log of the unsteered base model's probability of its choice.
        thinking_choice: argmax of the thinking model (as a base id); None where it is not run.
        thinking_choice_logprob: natural log of the thinking model's probability of its choice.
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
    """One finished answer, without its end-of-sequence token, its stop string and what follows that.

    Attributes:
        text: up to the stop string.
        records: of the kept tokens: those that begin within `text`. A token that holds both the end of the text and
            the start of the stop string is kept; its record's text is the part before the stop string.
        finish: what ended it: the end-of-sequence token, a stop string, or the allowed length.
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
        """Number of kept tokens steered with each behavior."""
        return Counter(record.behavior for record in self.records if record.behavior is not None)

    def _share(self, count: int) -> float:
        return count / len(self.records) if self.records else 0.0
