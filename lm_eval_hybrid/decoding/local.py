"""The two sides of decoding with models in this process, each with a KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.chooser import Steerer
from lm_eval_hybrid.decoding.context import DecodingContext, Verification
from lm_eval_hybrid.decoding.draft_length import LONGEST_OVERLAP
from lm_eval_hybrid.decoding.records import Emission
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.sampling import sample
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, LocalThinkingView, ThinkingView, Views
from lm_eval_hybrid.models.protocol import Backend
from lm_eval_hybrid.portable.attention_masks import pad_rows


@dataclass
class _Pending:
    """What the drafter has drafted in one row.

    Attributes:
        tokens: all but the last are in the KV cache.
        submitted: how many of them are submitted to be verified.
        full_length: the length of the row if all of these are accepted; chance_of_all: the chance that they are.
        chance: the chance that, given that, the other tokens are accepted as well and another may follow.
    """

    tokens: list[int] = field(default_factory=list)
    submitted: int = 0
    full_length: int = 0
    chance_of_all: float = 1.0
    chance: float = 1.0

    def submit(self, row: Row) -> list[int]:
        """All tokens, to be verified."""
        self.submitted = len(self.tokens)
        self.full_length = len(row.ids) + self.submitted
        self.chance_of_all, self.chance = self.chance, 1.0
        return list(self.tokens)

    def commit(self, row: Row) -> None:
        """Drop the submitted tokens; keep those drafted beyond if the row now has all that were submitted.

        The last of these may also have been emitted by a steered candidate.
        """
        if len(row.ids) == self.full_length and row.ids[-1] == self.tokens[self.submitted - 1]:
            self.tokens = self.tokens[self.submitted :]
        else:
            self.tokens, self.chance = [], 1.0


class LocalDrafter:
    """Implements `sides.Drafter` with a model in this process."""

    piece: ClassVar[int] = 64
    steered_at_once: ClassVar[int] = 64
    longest: ClassVar[int] = 16

    def __init__(self, context: DecodingContext, model: Backend, rows: int, ahead: int) -> None:
        """Make room for so many rows; `ahead`: the most tokens that are drafted or read at once."""
        self._context = context
        # A model that decodes alone gains nothing by drafting ahead.
        self._longest = 1 if context.verification is None else ahead
        if context.overlap:
            ahead += 2 * LONGEST_OVERLAP  # drafted during a verification: the previous round's, and this one's
        reach = None if context.steerer is None else context.steerer.reach
        self._sequences = model.open(rows, context.layer, reach, ahead)
        self._pending = [_Pending() for _ in range(rows)]
        self._overlapped: BaseView | None = None  # of the pending tokens beyond those submitted

    def insert(self, rows: Mapping[int, Row]) -> None:
        self._sequences.insert(list(rows), [row.ids[:-1] for row in rows.values()])
        for slot in rows:
            self._pending[slot] = _Pending()

    def select(self, slots: Sequence[int]) -> None:
        self._sequences.select(slots)
        self._pending = [self._pending[slot] for slot in slots]
        if self._overlapped is not None:
            self._overlapped = self._overlapped.select(slots)

    def draft(self, rows: Sequence[Row]) -> tuple[list[list[int]], BaseView]:
        """The same number of new tokens in every row, after those drafted during the last verification."""
        counts = [len(pending.tokens) for pending in self._pending]
        views: list[BaseView] = []
        while not all(pending.tokens for pending in self._pending) or self._should_continue():
            views.append(self._step(rows))
        self._context.draft_length.count_drafting(len(views))
        drafted = [pending.submit(row) for row, pending in zip(rows, self._pending, strict=True)]
        overlapped, self._overlapped = self._overlapped, None
        if overlapped is None:
            return drafted, BaseView.joined(views)
        width = overlapped.choice.shape[1]
        return drafted, BaseView.joined([overlapped, *views]).cut([width - count for count in counts])

    def continue_drafting(self, rows: Sequence[Row]) -> None:
        views: list[BaseView] = []
        steps = self._context.draft_length.overlapped_steps
        while len(views) < steps and any(pending.chance_of_all * pending.chance for pending in self._pending):
            views.append(self._step(rows))
        self._context.draft_length.count_overlapped(len(views))
        self._overlapped = BaseView.joined(views) if views else None

    def steer(
        self, steerer: Steerer, drafts: Sequence[Draft], views: Views, positions: Sequence[GatePosition]
    ) -> list[Emission]:
        return steerer.steer(self._sequences, views, positions)[0]

    def commit(self, rows: Sequence[Row]) -> None:
        for row, pending in zip(rows, self._pending, strict=True):
            pending.commit(row)
        self._sequences.rewind(
            [len(row.ids) - 1 + len(pending.tokens) for row, pending in zip(rows, self._pending, strict=True)]
        )

    def _should_continue(self) -> bool:
        """Whether to draft one more token in all rows."""
        if max(len(pending.tokens) for pending in self._pending) >= self._longest:
            return False
        return self._context.draft_length.should_continue([pending.chance for pending in self._pending])

    def _step(self, rows: Sequence[Row]) -> BaseView:
        """Draft one more token in all rows."""
        last = [p.tokens[-1] if p.tokens else row.ids[-1] for row, p in zip(rows, self._pending, strict=True)]
        output = self._sequences.read(torch.tensor(last)[:, None])
        draws = [row.draw(row.position + len(p.tokens)) for row, p in zip(rows, self._pending, strict=True)]
        drawn = None
        if any(draws):
            allowed = self._context.choices.masked(output.logits[:, 0])
            drawn = torch.tensor(sample(allowed.argmax(-1).tolist(), allowed, draws), device=allowed.device)[:, None]
        residual = output.residual if self._context.required.base_residual else None
        view = BaseView.of(output.logits, self._context.choices, residual, self._context.role, drawn)
        tokens = view.choice if drawn is None else drawn
        chances = self._context.draft_length.chances(view.margin[:, 0].cpu()).tolist()
        for row, pending, token, chance in zip(rows, self._pending, tokens[:, 0].tolist(), chances, strict=True):
            pending.tokens.append(token)
            pending.chance *= self._acceptance(row, pending, chance)
        return view

    def _acceptance(self, row: Row, pending: _Pending, chance: float) -> float:
        """The chance that the last drafted token is accepted and another may follow."""
        drafted = len(pending.tokens)
        opens = self._context.gate.scheduled(row.position + drafted - 1, row.key)
        if opens or pending.tokens[-1] == self._context.end or drafted >= row.room:
            return 0.0
        return chance if opens is None else 1.0

    def score(self, drafts: Sequence[Draft]) -> BaseView:
        output = self._sequences.read(
            pad_rows([[draft.row.ids[-1], *draft.tokens[:-1]] for draft in drafts]),
            [len(draft.tokens) for draft in drafts],
        )
        given = pad_rows([draft.tokens for draft in drafts], output.logits.device)
        logprobs = torch.stack([_logprob(row, ids) for row, ids in zip(output.logits, given, strict=True)])
        view = BaseView.of(output.logits, self._context.choices, output.residual, self._context.role)
        return replace(view, drafted_logprob=logprobs)

    def score_steered(
        self, steerer: Steerer, views: Views, positions: Sequence[GatePosition]
    ) -> tuple[Tensor, list[int]]:
        emissions, logits = steerer.steer(self._sequences, views, positions)
        given = torch.tensor([place.draft.tokens[place.step] for place in positions], device=logits.device)
        return _logprob(logits, given).cpu(), [emission.token for emission in emissions]


class LocalVerifier:
    """Implements `sides.Verifier` with a model in this process."""

    piece: ClassVar[int] = 64

    def __init__(self, verification: Verification, model: Backend, rows: int, ahead: int) -> None:
        """Make room for so many rows; `ahead`: the most of the speaker's tokens that are read at once."""
        self._bridge = verification.bridge
        self._sequences = model.open(rows, verification.layer, None, ahead)

    def insert(self, rows: Mapping[int, Row]) -> None:
        self._sequences.insert(list(rows), [row.thinking_ids[:-1] for row in rows.values()])

    def select(self, slots: Sequence[int]) -> None:
        self._sequences.select(slots)

    def commit(self, rows: Sequence[Row]) -> None:
        self._sequences.rewind([row.thinking_read for row in rows])

    def verify(self, drafts: Sequence[Draft], base: BaseView, every: bool = False) -> ThinkingView:
        chunks = [[i for ids in draft.unread for i in ids] for draft in drafts]
        output = self._sequences.read(pad_rows(chunks), [len(chunk) for chunk in chunks])
        logits, residual = output.logits, output.residual
        if any(len(chunk) != len(draft.tokens) for chunk, draft in zip(chunks, drafts, strict=True)):
            ends = pad_rows([[end - 1 for end in draft.ends] for draft in drafts], logits.device)
            rows = torch.arange(len(ends), device=logits.device)[:, None]
            logits, residual = logits[rows, ends], residual[rows, ends]
        return LocalThinkingView.of(logits, residual, self._bridge)


def _logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, vocab] of any dtype, [n] int64 -> [n] float32: the tokens' log-probabilities."""
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
