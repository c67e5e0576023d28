"""One answer in the making: its tokens' facts, its text, and when it ends."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.decoding.records import Finish, Generation, TokenRecord
from lm_eval_hybrid.decoding.tokens.transcript import Transcript


class Fact(NamedTuple):
    """The decision at one position of one row: the fields of `TokenRecord` that do not depend on text."""

    token: int
    steered: bool
    changed: bool
    category: int | None
    coefficient: float | None
    window: int | None
    thinking_logprob: float | None
    base_choice: int | None
    base_logprob: float | None
    thinking_choice: int | None
    thinking_choice_logprob: float | None


class Answer:
    """Collects tokens until one ends the answer.

    Args:
        tokenizer: decodes the answer.
        keys: behavior of each category.
        stop: strings that end the answer.
        limit: tokens at most.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, keys: Sequence[str], stop: Sequence[str], limit: int
    ) -> None:
        self._transcript = Transcript(tokenizer, stop)
        self._keys = keys
        self._limit = limit
        self._facts: list[Fact] = []
        self._finish: Finish = "length"

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self._facts)

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._limit - len(self._facts)

    def take(self, fact: Fact, shown: Sequence[int], ends: bool) -> bool:
        """Add a token, `shown` being its ids for the tokenizer, or end with it; say whether it goes on."""
        if ends:
            self._finish = "eos"
            return False
        self._facts.append(fact)
        if self._transcript.push(shown):
            self._finish = "stop"
            return False
        return self.room > 0

    def generation(self) -> Generation:
        """The finished answer."""
        self._transcript.close()
        pieces = self._transcript.kept()
        records = [
            TokenRecord(
                position=position,
                text=piece,
                behavior=None if fact.category is None else self._keys[fact.category],
                **fact._asdict(),
            )
            # Facts beyond the pieces belong to the stop string.
            for position, (fact, piece) in enumerate(zip(self._facts, pieces, strict=False))
        ]
        return Generation("".join(pieces), tuple(records), self._finish)
