"""The two sides of a batch whose models are in this process, or nearer than a server."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lm_eval_hybrid.backends.protocol import Sequences
from lm_eval_hybrid.decoding.choosing import Candidates, Place, present
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.sides import Drafts, Steps
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, read_thinking


class LocalBase:
    """Implements `sides.BaseSide`."""

    def __init__(self, system: System, sequences: Sequences) -> None:
        self._system = system
        self._sequences = sequences

    def admit(self, rows: dict[int, Row]) -> None:
        self._sequences.admit(list(rows), [row.base_ids[:-1] for row in rows.values()])

    def keep(self, slots: Sequence[int]) -> None:
        self._sequences.keep(slots)

    def settle(self, rows: Sequence[Row]) -> None:
        self._sequences.rewind([len(row.base_ids) - 1 for row in rows])

    def draft(self, rows: Sequence[Row]) -> tuple[Drafts, BaseView]:
        """The same number of tokens for every row."""
        drafted: Drafts = [[] for _ in rows]
        pending, views = [row.base_ids[-1] for row in rows], []
        standing = torch.ones(len(rows))
        longest = self._system.longest if self._system.thinking is not None else 1
        sampled = any(row.request.sampling for row in rows)
        while True:
            reading = self._sequences.read(torch.tensor(pending)[:, None])
            view = BaseView.of(reading.logits, reading.residual, self._system.bridge, keep=sampled)
            views.append(view)
            pending = _spoken(rows, view, len(views) - 1)
            for tokens, token in zip(drafted, pending, strict=True):
                tokens.append(token)
            standing *= self._stands(rows, view, pending, len(views))
            if len(views) >= longest or not self._system.pace.goes_on(standing):
                return drafted, BaseView.joined(views)

    def steer(
        self,
        rows: Sequence[Row],
        drafted: Drafts,
        steps: Steps,
        base: BaseView,
        thinking: ThinkingView | None,
        places: Sequence[Place],
    ) -> Candidates:
        candidates = self._system.chooser.steer(self._sequences, base, thinking, places)
        tokens = candidates.token.tolist()
        for i, place in enumerate(places):
            sampling = rows[place.row].request.sampling
            if sampling is not None:
                bridge, logits = self._system.bridge, present(candidates.logits)[i]
                logits = logits if bridge is None else bridge.base_logits(logits)
                tokens[i] = sampling.pick(logits, place.position, place.key)
        return replace(candidates, token=torch.tensor(tokens))

    def _stands(self, rows: Sequence[Row], view: BaseView, tokens: Sequence[int], drafted: int) -> Tensor:
        """[rows]: the chance that the last drafted token stands, and another may follow."""
        chances = self._system.pace.chances(view.margin[:, 0].cpu())
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            opens = self._system.chooser.opens_unseen(row.position + drafted - 1, row.key)
            if opens or token == self._system.end or drafted >= row.answer.room:
                chances[i] = 0.0
            elif opens is not None:
                chances[i] = 1.0
        return chances


class LocalThinking:
    """Implements `sides.ThinkingSide`."""

    def __init__(self, system: System, sequences: Sequences) -> None:
        self._system = system
        self._sequences = sequences

    def admit(self, rows: dict[int, Row]) -> None:
        self._sequences.admit(list(rows), [row.thinking_ids[:-1] for row in rows.values()])

    def keep(self, slots: Sequence[int]) -> None:
        self._sequences.keep(slots)

    def settle(self, rows: Sequence[Row]) -> None:
        self._sequences.rewind([row.thinking_read for row in rows])

    def verify(
        self, rows: Sequence[Row], drafted: Drafts, base: BaseView | None
    ) -> tuple[ThinkingView, list[list[int]]]:
        crossings = [
            [row.thinking_ids[row.thinking_read :], *map(self._system.shown, tokens[:-1])]
            for row, tokens in zip(rows, drafted, strict=True)
        ]
        return read_thinking(self._sequences, crossings, present(self._system.bridge))


def _spoken(rows: Sequence[Row], view: BaseView, step: int) -> list[int]:
    """The base's next token in every row: its choice, or one drawn."""
    tokens = view.choice[:, 0].tolist()
    for i, row in enumerate(rows):
        if row.request.sampling is not None:
            tokens[i] = row.request.sampling.pick(present(view.logits)[i, 0], row.position + step, row.key)
    return tokens
