"""What models on a server have answered: the base model's drafts, and the thinking model's view of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, TopKLogprobs
from lm_eval_hybrid.portable.sampling import likeliest

Place = tuple[int, int]
"""A (row, step) of the view."""

ExactLogprobs = Callable[[list[tuple[int, int, int]]], list[float]]
"""Asks the server for the log-probability of each (row, step, thinking id), given in order."""


@dataclass(frozen=True)
class RemoteDraft:
    """What a model on a server drafted after the tokens of one row.

    Attributes:
        length, last: the number of tokens in the row, and the last one.
        tokens: drafted.
        view: what they were chosen from; see `BaseView.row`.
    """

    length: int
    last: int
    tokens: list[int]
    view: BaseView

    def follows(self, ids: Sequence[int]) -> bool:
        """Whether it was drafted after these tokens."""
        return (self.length, self.last) == (len(ids), ids[-1])


@dataclass(frozen=True)
class RemoteThinkingView:
    """The `ThinkingView` of a model on a server, which sent little besides its choices.

    Attributes:
        choice: [rows, k] int64, its likeliest token among those that cross, as its own id.
        known: log-probabilities of thinking ids at each place; at openings the likeliest ones.
        floors: at each opening, the lowest of its likeliest.
        openings: the places at which the gate opened, with their indices in `residual`.
        residual: [n, d] float32, after the SAE's layer, at the openings; None where it was not requested.
        drawn: the thinking id drawn at each opening, where tokens are sampled.
        exact_logprobs: asks for what is not `known`.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor
    known: dict[Place, dict[int, float]]
    floors: dict[Place, float]
    openings: dict[Place, int]
    residual: Tensor | None
    drawn: dict[Place, int]
    bridge: Bridge
    exact_logprobs: ExactLogprobs

    @classmethod
    def of(
        cls, answer: dict[str, Any], scored: Sequence[Sequence[int]], bridge: Bridge, exact_logprobs: ExactLogprobs
    ) -> RemoteThinkingView:
        """The view of an answer of `programs.read`, which was asked to score one thinking id at each place."""
        known: dict[Place, dict[int, float]] = {}
        for row, tokens in enumerate(scored):
            columns = (answer[name][row].tolist() for name in ("choice", "logprob", "spoken_logprob"))
            for step, (token, choice, logprob, scored_logprob) in enumerate(zip(tokens, *columns, strict=False)):
                known[row, step] = {choice: logprob} | ({token: scored_logprob} if token >= 0 else {})
        openings = list(zip(answer["rows"].tolist(), answer["steps"].tolist(), strict=True))
        top = zip(openings, answer["top_tokens"].tolist(), answer["top_logprobs"].tolist(), strict=True)
        floors = {}
        for place, tokens, logprobs in top:
            known[place] |= dict(zip(tokens, logprobs, strict=True))
            floors[place] = logprobs[-1]
        drawn = answer["drawn"].tolist() if "drawn" in answer else ()
        return cls(
            answer["choice"],
            bridge.to_base(answer["choice"]),
            answer["logprob"],
            known,
            floors,
            {place: i for i, place in enumerate(openings)},
            answer.get("residual"),
            dict(zip(openings, drawn, strict=False)),
            bridge,
            exact_logprobs,
        )

    def agrees(self, choice: Tensor) -> Tensor:
        return self.bridge.agree(choice, self.choice.to(choice.device))

    def residuals(self, positions: Sequence[GatePosition]) -> Tensor:
        if self.residual is None:
            raise ValueError("the thinking model's residuals were not requested")
        return self.residual[[self.openings[position.row, position.step] for position in positions]]

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        ids = self.bridge.to_thinking(tokens.cpu()).tolist()
        places = list(zip(rows.tolist(), steps.tolist(), strict=True))
        missing = sorted(
            {
                (*place, token)
                for place, line in zip(places, ids, strict=True)
                for token in line
                if token >= 0 and token not in self.known[place]
            }
        )
        if missing:
            for (row, step, token), logprob in zip(missing, self.exact_logprobs(missing), strict=True):
                self.known[row, step][token] = logprob
        return torch.tensor(
            [
                [self.known[place].get(token, -math.inf) for token in line]
                for place, line in zip(places, ids, strict=True)
            ]
        )

    def likeliest(self, positions: Sequence[GatePosition], tokens: Tensor) -> Tensor:
        ids = self.bridge.to_thinking(tokens.cpu()).tolist()
        indices = []
        for i, position in enumerate(positions):
            place = position.row, position.step
            known = self.known[place]
            index = likeliest(ids[i], range(len(ids[i])), list(known), list(known.values()), self.floors[place])
            if index < 0:  # it may be one that is not known
                row, step = torch.tensor(place)[:, None]
                index = int(self.logprobs(row, step, tokens[i : i + 1])[0].argmax())
            indices.append(index)
        return torch.tensor(indices)

    def top_k(self, position: GatePosition) -> TopKLogprobs:
        place = position.row, position.step
        likely = {token: value for token, value in self.known[place].items() if value >= self.floors[place]}
        return TopKLogprobs.of(list(likely), list(likely.values()), self.bridge)

    def own_tokens(self, positions: Sequence[GatePosition]) -> list[int]:
        tokens = [
            int(self.choice[position.row, position.step])
            if position.draw is None
            else self.drawn[position.row, position.step]
            for position in positions
        ]
        return self.bridge.to_base(torch.tensor(tokens)).tolist()
