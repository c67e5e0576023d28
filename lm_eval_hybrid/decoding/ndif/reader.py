"""Asking a thinking model on a server what it says at some places of some texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_hybrid.decoding.ndif.views import RemoteView
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.decoding.views import JUDGED, check_numbers
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.portable.sampling import drawn

Levels = tuple[float, int, float, list[float]]
"""How tokens are drawn: temperature, top_k, top_p, and a level for each."""


@dataclass(frozen=True)
class Question:
    """What is asked of a text; lists are of its places, in order.

    Attributes:
        ids: the text, as thinking ids, up to the last place at least.
        places: indices in it: what is said after each is asked.
        spoken: the thinking id whose probability is asked.
        accepted: thinking ids that agree with the base's choice.
        opens: whether the gate opens: 1, 0, or -1 where both models decide.
        sampling: how the thinking model's own token is drawn, with a level for each place.
    """

    ids: list[int]
    places: list[int]
    spoken: list[int]
    accepted: list[list[int]]
    opens: list[int]
    sampling: Levels | None = None


class RemoteReader:
    """See `programs.read`."""

    def __init__(self, system: System, model: NdifModel, bridge: Bridge) -> None:
        self._model = model
        self._bridge = bridge
        chooser, choices = system.chooser, bridge.thinking_choices
        self._wanted = {
            # A model that speaks where the gate opens judges nobody.
            "top": 1 if chooser.emits_thinking else JUDGED,
            "chosen": False,
            "residual": chooser.asks.category,
            "layer": system.sae_layer,
            "width": choices.width,
            "blocked": list(choices.blocked),
        }

    def read(self, questions: Sequence[Question], every: bool) -> RemoteView:
        """What is said; every: whether every opening counts, or the first of each text."""
        found, given = self._ask(questions, every)
        check_numbers(found["logprob"], "thinking")

        def exactly(places: list[tuple[int, int, int]]) -> list[float]:
            return self._exactly(questions, places)

        return RemoteView.of(found, given["spoken"], self._bridge, exactly)

    def _ask(self, questions: Sequence[Question], every: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        sampling = [question.sampling for question in questions]
        given = {
            "ids": [question.ids for question in questions],
            "wanted": [question.places for question in questions],
            "spoken": [question.spoken for question in questions],
            "accepted": [question.accepted for question in questions],
            "opens": [question.opens for question in questions],
            "every": every,
            "sampling": sampling,
            "drawn": drawn if any(sampling) else None,
            **self._wanted,
        }
        return self._model.read(given), given

    def _exactly(self, questions: Sequence[Question], places: list[tuple[int, int, int]]) -> list[float]:
        """Log-probabilities of (text, place, thinking id)s."""
        asked: dict[int, list[tuple[int, int]]] = {}
        for text, place, token in places:
            asked.setdefault(text, []).append((place, token))
        again = [
            replace(
                questions[text],
                places=[questions[text].places[place] for place, _ in some],
                spoken=[token for _, token in some],
                accepted=[[] for _ in some],
                opens=[0] * len(some),
                sampling=None,
            )
            for text, some in asked.items()
        ]
        again = [replace(question, ids=question.ids[: max(question.places) + 1]) for question in again]
        told = self._ask(again, every=False)[0]["spoken_logprob"].tolist()
        found = {
            (text, *pair): logprob
            for (text, some), row in zip(asked.items(), told, strict=True)
            for pair, logprob in zip(some, row, strict=False)
        }
        return [found[place] for place in places]


def levels(row: Row, position: int, count: int) -> Levels | None:
    """How a row's tokens are drawn from `position` on; None where they are not."""
    how = row.request.sampling
    if how is None:
        return None
    return how.temperature, how.top_k, how.top_p, [how.level(position + step, row.key) for step in range(count)]
