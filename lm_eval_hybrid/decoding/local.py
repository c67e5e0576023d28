"""The two sides of a batch whose models are in this process, or nearer than a server."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lm_eval_hybrid.decoding.chooser import Candidates, Place, present
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.sides import Drafts, Steps
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, read_thinking
from lm_eval_hybrid.models.protocol import Sequences


@dataclass
class _Draft:
    """What the base would say next in one row.

    Attributes:
        tokens: what it would; all but the last are read.
        handed: how many of them are handed out to be verified; stood: the length of the row where they all do.
        whole: the chance that they do; standing: that the others, and what may follow them, do then.
    """

    tokens: list[int] = field(default_factory=list)
    handed: int = 0
    stood: int = 0
    whole: float = 1.0
    standing: float = 1.0

    def hand_out(self, row: Row) -> list[int]:
        """All there are."""
        self.handed = len(self.tokens)
        self.stood = len(row.base_ids) + self.handed
        self.whole, self.standing = self.standing, 1.0
        return list(self.tokens)

    def settle(self, row: Row) -> None:
        """Keep what was drafted beyond, where all that was handed out stands (what was steered may be the same)."""
        stands = len(row.base_ids) == self.stood and row.base_ids[-1] == self.tokens[self.handed - 1]
        self.tokens = self.tokens[self.handed :] if stands else []
        if not stands:
            self.standing = 1.0


class LocalBase:
    """Implements `sides.BaseSide`."""

    def __init__(self, system: System, sequences: Sequences, rows: int) -> None:
        self._system = system
        self._sequences = sequences
        self._drafts = [_Draft() for _ in range(rows)]
        self._ahead: BaseView | None = None  # what the tokens of `_drafts` beyond those handed out were chosen from

    def insert(self, rows: dict[int, Row]) -> None:
        self._sequences.insert(list(rows), [row.base_ids[:-1] for row in rows.values()])
        for slot in rows:
            self._drafts[slot] = _Draft()

    def select(self, slots: Sequence[int]) -> None:
        self._sequences.select(slots)
        self._drafts = [self._drafts[slot] for slot in slots]
        self._ahead = self._ahead and self._ahead.at(slots)

    def settle(self, rows: Sequence[Row]) -> None:
        for row, draft in zip(rows, self._drafts, strict=True):
            draft.settle(row)
        self._sequences.rewind(
            [len(row.base_ids) - 1 + len(draft.tokens) for row, draft in zip(rows, self._drafts, strict=True)]
        )

    def draft(self, rows: Sequence[Row]) -> tuple[Drafts, BaseView]:
        """The same number of tokens for every row, and what was drafted ahead."""
        foreseen = [len(draft.tokens) for draft in self._drafts]
        longest = self._system.longest if self._system.thinking is not None else 1
        views: list[BaseView] = []
        while not all(draft.tokens for draft in self._drafts) or self._goes_on(longest):
            views.append(self._step(rows))
        self._system.pace.drafted(len(views))
        drafted = [draft.hand_out(row) for row, draft in zip(rows, self._drafts, strict=True)]
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return drafted, BaseView.joined(views)
        width = ahead.choice.shape[1]
        return drafted, BaseView.joined([ahead, *views]).cut([width - count for count in foreseen])

    def go_on(self, rows: Sequence[Row]) -> None:
        views = []
        while len(views) < self._system.pace.meanwhile and any(d.whole * d.standing for d in self._drafts):
            views.append(self._step(rows))
        self._system.pace.drafted_meanwhile(len(views))
        self._ahead = BaseView.joined(views) if views else None

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

    def _goes_on(self, longest: int) -> bool:
        """Whether to draft one more token for all rows."""
        if max(len(draft.tokens) for draft in self._drafts) >= longest:
            return False
        return self._system.pace.goes_on([draft.standing for draft in self._drafts])

    def _step(self, rows: Sequence[Row]) -> BaseView:
        """Draft one more token for all rows."""
        bridge = self._system.bridge
        pending = [
            draft.tokens[-1] if draft.tokens else row.base_ids[-1]
            for row, draft in zip(rows, self._drafts, strict=True)
        ]
        reading = self._sequences.read(torch.tensor(pending)[:, None])
        sampled = any(row.request.sampling for row in rows)
        view = BaseView.of(reading.logits, reading.residual, bridge, keep=sampled)
        chances = self._system.pace.chances(view.margin[:, 0].cpu()).tolist()
        for i, (row, draft, token) in enumerate(zip(rows, self._drafts, view.choice[:, 0].tolist(), strict=True)):
            position = row.position + len(draft.tokens)
            if row.request.sampling is not None:
                token = row.request.sampling.pick(present(view.logits)[i, 0], position, row.key)
            draft.tokens.append(token)
            draft.standing *= self._stands(row, draft, chances[i])
        return view

    def _stands(self, row: Row, draft: "_Draft", chance: float) -> float:
        """The chance that the last drafted token stands, and another may follow."""
        drafted = len(draft.tokens)
        opens = self._system.chooser.opens_unseen(row.position + drafted - 1, row.key)
        if opens or draft.tokens[-1] == self._system.end or drafted >= row.answer.room:
            return 0.0
        return chance if opens is None else 1.0


class LocalThinking:
    """Implements `sides.ThinkingSide`."""

    def __init__(self, system: System, sequences: Sequences) -> None:
        self._system = system
        self._sequences = sequences

    def insert(self, rows: dict[int, Row]) -> None:
        self._sequences.insert(list(rows), [row.thinking_ids[:-1] for row in rows.values()])

    def select(self, slots: Sequence[int]) -> None:
        self._sequences.select(slots)

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
