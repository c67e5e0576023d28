"""Answers that carry how they came to be, and what a run's answers add up to."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lm_eval_hybrid.decoding.records import Generation


class HybridAnswer(str):
    """An answer's text, for the harness, and its generation, for us.

    As a `str` it passes through everything the harness does with answers; being picklable it keeps its records in the
    response cache and between processes. Built from a text alone it is that text: the harness makes targets that way.

    Attributes:
        generation: a record per token; None for such a text.
        arm, bundle: what generated it.
        thought_open: the model that wrote it was prompted to begin inside a thought.
        compared: the base model was run, so that it is known which tokens steering changed.
        words: what the models' choices read as, by id, where they are not the token that was taken.
    """

    generation: Generation | None
    arm: str
    bundle: str
    thought_open: bool
    compared: bool
    words: Mapping[int, str]

    def __new__(
        cls,
        text: object = "",
        generation: Generation | None = None,
        arm: str = "",
        bundle: str = "",
        thought_open: bool = False,
        compared: bool = True,
        words: Mapping[int, str] = MappingProxyType({}),
    ) -> "HybridAnswer":
        self = super().__new__(cls, text)
        self.generation, self.arm, self.bundle = generation, arm, bundle
        self.thought_open, self.compared, self.words = thought_open, compared, dict(words)
        return self


@dataclass
class Totals:
    """Counts over the answers that a run generated (not those it found in a response cache).

    Attributes:
        tokens, steered, changed: generated tokens, up to the stop string.
        made: tokens that were generated now, not before an interruption.
        compared: the base model was run, so that `changed` means something.
        truncated: answers that reached the length limit.
        behaviors: tokens by the behavior they were steered with.
        seconds: wall time of generation, prompts read included.
    """

    requests: int = 0
    tokens: int = 0
    made: int = 0
    steered: int = 0
    changed: int = 0
    compared: bool = True
    truncated: int = 0
    behaviors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, generation: Generation, made: bool = True) -> None:
        """Count a finished answer; its time is counted apart, as answers are made side by side."""
        self.requests += 1
        self.tokens += len(generation.records)
        self.made += len(generation.records) if made else 0
        self.steered += sum(record.steered for record in generation.records)
        self.changed += sum(record.changed for record in generation.records)
        self.compared &= all(record.base_choice is not None for record in generation.records)
        self.truncated += generation.finish == "length"
        self.behaviors.update(generation.categories)

    @classmethod
    def of(cls, ranks: Iterable["Totals"]) -> "Totals":
        """The totals of processes that ran side by side: counts add up, the longest time counts."""
        whole = cls()
        for part in ranks:
            for name in ("requests", "tokens", "made", "steered", "changed", "truncated"):
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.compared &= part.compared
            whole.behaviors.update(part.behaviors)
            whole.seconds = max(whole.seconds, part.seconds)
        return whole

    def summary(self) -> dict[str, Any]:
        """As the results file has it: `hybrid_totals`. What nothing was generated to measure is None."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "steered": self.steered,
            "changed": self.changed if self.compared else None,
            "steered_fraction": self.steered / self.tokens if self.tokens else None,
            "changed_fraction": self.changed / self.tokens if self.tokens and self.compared else None,
            "behaviors": dict(self.behaviors.most_common()),
            "truncated": self.truncated,
            "seconds": self.seconds,
            "tokens_per_second": self.made / self.seconds if self.made and self.seconds else None,
        }
