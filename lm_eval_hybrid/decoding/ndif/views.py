"""What a thinking model on a server has told: of every place its choice, of the gate's openings more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.decoding.views import Judge, check_numbers

if TYPE_CHECKING:
    from lm_eval_hybrid.decoding.ndif.drafting import Ahead

Exactly = Callable[[list[tuple[int, int, int]]], list[float]]
"""Asks the server for the log-probabilities of thinking ids, each after a step of a row."""


@dataclass(frozen=True)
class RemoteView:
    """A `ThinkingView`; attributes that are not of that:

    Attributes:
        said: by (row, step), log-probabilities of thinking ids; of the openings the likeliest ones.
        floors: by (row, step) of an opening, the lowest of its likeliest.
        residual: [n, d] float32, after the SAE's layer, at the openings.
        openings: by (row, step), their indices in it.
        spoken: by (row, step) of an opening, the thinking id drawn there.
        exactly: asks for what is not in `said`.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor
    said: dict[tuple[int, int], dict[int, float]]
    floors: dict[tuple[int, int], float]
    residual: Tensor | None
    openings: dict[tuple[int, int], int]
    spoken: dict[tuple[int, int], int]
    bridge: Bridge
    exactly: Exactly

    @classmethod
    def of(cls, found: dict[str, Any], asked: Sequence[Sequence[int]], bridge: Bridge, exactly: Exactly) -> RemoteView:
        """From what `programs.read` has found, who was asked for these tokens."""
        said: dict[tuple[int, int], dict[int, float]] = {}
        told = zip(found["choice"].tolist(), found["logprob"].tolist(), found["spoken_logprob"].tolist(), strict=True)
        for row, (choices, logprobs, spoken) in enumerate(told):
            for step, token in enumerate(asked[row]):
                said[row, step] = {choices[step]: logprobs[step]} | ({token: spoken[step]} if token >= 0 else {})
        openings = list(zip(found["rows"].tolist(), found["steps"].tolist(), strict=True))
        floors = {}
        for place, tokens, logprobs in zip(
            openings, found["top_tokens"].tolist(), found["top_logprobs"].tolist(), strict=True
        ):
            said[place] |= dict(zip(tokens, logprobs, strict=True))
            floors[place] = logprobs[-1]
        drawn = found["drawn"].tolist() if "drawn" in found else ()
        return cls(
            found["choice"],
            bridge.to_base(found["choice"]),
            found["logprob"],
            said,
            floors,
            found.get("residual"),
            {place: i for i, place in enumerate(openings)},
            dict(zip(openings, drawn, strict=False)),
            bridge,
            exactly,
        )

    def residuals(self, rows: Tensor, steps: Tensor) -> Tensor:
        at = [self.openings[place] for place in zip(rows.tolist(), steps.tolist(), strict=True)]
        if self.residual is None:
            raise ValueError("residuals were not asked for")
        return self.residual[at]

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        ids = self.bridge.to_thinking(tokens.cpu()).tolist()
        places = list(zip(rows.tolist(), steps.tolist(), strict=True))
        missing = sorted(
            {
                (*place, token)
                for place, line in zip(places, ids, strict=True)
                for token in line
                if token >= 0 and token not in self.said[place]
            }
        )
        if missing:
            for (row, step, token), logprob in zip(missing, self.exactly(missing), strict=True):
                self.said[row, step][token] = logprob
        return torch.tensor(
            [
                [self.said[place].get(token, -math.inf) for token in line]
                for place, line in zip(places, ids, strict=True)
            ]
        )

    def likeliest(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        ids = self.bridge.to_thinking(tokens.cpu()).tolist()
        found = []
        for i, place in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
            values = [self.said[place].get(token, -math.inf) for token in ids[i]]
            unknown = any(token >= 0 and token not in self.said[place] for token in ids[i])
            if unknown and max(values) <= self.floors[place]:
                values = self.logprobs(rows[i : i + 1], steps[i : i + 1], tokens[i : i + 1])[0].tolist()
            found.append(values.index(max(values)))
        return torch.tensor(found)

    def judge(self, row: int, step: int) -> Judge:
        likely = {token: value for token, value in self.said[row, step].items() if value >= self.floors[row, step]}
        return Judge.of(list(likely), list(likely.values()), self.bridge)

    def drawn(self, row: int, step: int, sampling: Sampling, position: int, key: bytes) -> int:
        return int(self.bridge.to_base(torch.tensor(self.spoken[row, step])))


@dataclass(frozen=True)
class AheadView:
    """A `ThinkingView` of one step, where the thinking model speaks alone.

    Attributes:
        spoken: [rows] int64, the tokens that it speaks; spoken_logprob: [rows] float32.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor
    spoken: Tensor
    spoken_logprob: Tensor
    bridge: Bridge

    @classmethod
    def of(cls, ahead: Sequence[Ahead], bridge: Bridge) -> AheadView:
        """From what it would say next in every row."""
        choice = torch.stack([told.choice[:1] for told in ahead])
        logprob = torch.stack([told.logprob[:1] for told in ahead])
        check_numbers(logprob, "thinking")
        return cls(
            choice,
            bridge.to_base(choice),
            logprob,
            torch.stack([told.tokens[0] for told in ahead]),
            torch.stack([told.spoken[0] for told in ahead]),
            bridge,
        )

    def residuals(self, rows: Tensor, steps: Tensor) -> Tensor:
        raise ValueError("a model that speaks alone is not asked for residuals")

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        return self.spoken_logprob[rows][:, None].expand(tokens.shape)

    def likeliest(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        raise ValueError("a model that speaks alone judges nobody")

    def judge(self, row: int, step: int) -> Judge:
        raise ValueError("a model that speaks alone judges nobody")

    def drawn(self, row: int, step: int, sampling: Sampling, position: int, key: bytes) -> int:
        return int(self.bridge.to_base(self.spoken[row]))
