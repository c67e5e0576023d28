"""Scoring by models on a server: a text is read at once, whatever its length, from its first token.

One request a model for all texts, and one to the base for every so many places at which the gate opens: there each is
a row of its own, up to the place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.chooser import Place, present
from lm_eval_hybrid.decoding.ndif.reader import Question, RemoteReader
from lm_eval_hybrid.decoding.scorers import Text, own_tokens
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.tokens.bridge import Choices
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, check_numbers
from lm_eval_hybrid.models.ndif.model import NdifModel


class RemoteBaseScorer:
    """Implements `scorers.BaseScorer`."""

    def __init__(self, system: System, model: NdifModel) -> None:
        self._system = system
        self._model = model
        choices = Choices(None, ()) if system.bridge is None else system.bridge.base_choices
        self._wanted = {"layer": system.layer, "width": choices.width, "blocked": list(choices.blocked)}

    def select(self, rows: Sequence[int]) -> None:
        pass  # nothing is kept of what was read

    def read(self, texts: Sequence[Text], start: int, size: int) -> tuple[Tensor, BaseView]:
        own = [list(text.tokens[start : start + size]) for text in texts]
        network = self._system.chooser.asks.network
        found = self._model.read(
            {
                "ids": [
                    [*text.prompt.base_ids, *text.tokens[: start + len(tokens) - 1]]
                    for text, tokens in zip(texts, own, strict=True)
                ],
                "wanted": [
                    [len(text.prompt.base_ids) - 1 + start + i for i in range(len(tokens))]
                    for text, tokens in zip(texts, own, strict=True)
                ],
                "spoken": own,
                "accepted": [[[]] * len(tokens) for tokens in own],
                # Where it opens is not known yet; a network wants the residuals of wherever that will be.
                "opens": [[int(network)] * len(tokens) for tokens in own],
                "every": True,
                "top": 1,
                "chosen": False,
                "residual": network,
                "sampling": [None] * len(texts),
                "drawn": None,
                **self._wanted,
            }
        )
        check_numbers(found["logprob"], "base")
        residual = None
        if network:
            residual = torch.zeros(*found["choice"].shape, found["residual"].shape[-1])
            residual[found["rows"], found["steps"]] = found["residual"]
        view = BaseView(found["choice"], torch.zeros_like(found["logprob"]), found["logprob"], residual, None)
        return found["spoken_logprob"], view

    def steer(
        self, texts: Sequence[Text], base: BaseView, thinking: ThinkingView | None, places: Sequence[Place]
    ) -> tuple[Tensor, Tensor]:
        chooser = self._system.chooser
        trial = chooser.trial(base, thinking, places)
        given: dict[str, Any] = {
            "ids": [
                [*texts[place.row].prompt.base_ids, *texts[place.row].tokens[: place.position]] for place in places
            ],
            "pending": [-1] * len(places),
            "longest": 0,
            "residual": False,
            "sampling": [None] * len(places),
            "steering": {
                "rows": list(range(len(places))),
                **chooser.as_sent(trial, thinking, places, trial.taken),
                "sampling": [None] * len(places),
                "own": own_tokens(texts, places).tolist(),
            },
            **self._wanted,
        }
        found = self._model.draft(given)
        check_numbers(found["said"], "steered base")
        taken, tokens = found["taken"], found["candidates"]
        unknown = [i for i, known in enumerate(taken.tolist()) if known < 0]
        if unknown:  # the likeliest candidate is not among the likeliest tokens
            taken[unknown] = chooser.likeliest(thinking, [places[i] for i in unknown], tokens[unknown])
        each = torch.arange(len(places))
        return found["own"][each, taken], tokens[each, taken]


class RemoteThinkingScorer:
    """Implements `scorers.ThinkingScorer`."""

    def __init__(self, system: System, model: NdifModel) -> None:
        self._system = system
        self._bridge = present(system.bridge)
        self._reader = RemoteReader(system, model, self._bridge)

    def select(self, rows: Sequence[int]) -> None:
        pass  # nothing is kept of what was read

    def read(self, texts: Sequence[Text], start: int, size: int, base: BaseView | None) -> ThinkingView:
        choices = [[None] * size] * len(texts) if base is None else base.choice.tolist()
        questions = [self._question(text, start, size, row) for text, row in zip(texts, choices, strict=True)]
        return self._reader.read(questions, every=True)

    def _question(self, text: Text, start: int, size: int, choices: Sequence[int | None]) -> Question:
        ids, places = list(text.prompt.thinking_ids), [len(text.prompt.thinking_ids) - 1]
        for crossed in text.crossings[: start + size - 1]:
            ids += crossed
            places.append(len(ids) - 1)
        own = text.tokens[start : start + size]
        opens = [self._system.chooser.opens_unseen(start + i, text.key) for i in range(len(own))]
        return Question(
            ids,
            places[start:],
            # What the last one crosses as is not read; only the first of it is asked for.
            spoken=[self._first(token) for token in own],
            accepted=[[] if choice is None else self._bridge.agreeing(choice) for choice in choices[: len(own)]],
            opens=[-1 if known is None else int(known) for known in opens],
        )

    def _first(self, token: int) -> int:
        return int(self._bridge.to_thinking(torch.tensor([token]))[0])
