"""Rows decoded together, round by round: draft and verify (DESIGN, section 2).

A round: the base drafts k tokens, one after the other; the thinking model reads them in one pass; of every row the
tokens before the first position at which the gate opens stand, and that position is steered. What was drafted beyond
is taken back. Rows need no step in common: each has its own length, in both models.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.answer import Fact
from lm_eval_hybrid.decoding.aside import Aside
from lm_eval_hybrid.decoding.chooser import NONE, Candidates, Place, present
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.sides import BaseSide, Drafts, ThinkingSide
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """What is emitted where the gate opened in some rows.

    Attributes:
        steps: of each row the step at which it opened; None where it did not.
        tokens: by row.
        candidates: of the rows where it opened, in order; None where the thinking model's own tokens are emitted.
    """

    steps: list[int | None]
    tokens: dict[int, int]
    candidates: Candidates | None

    def reasons(self) -> Iterator[tuple[int | None, float | None, int | None]]:
        """(category, coefficient, window) for each row where it opened."""
        if self.candidates is None:
            yield from [(None, None, None)] * len(self.tokens)
            return
        columns = (self.candidates.category, self.candidates.coefficient, self.candidates.window)
        for category, coefficient, window in zip(*(c.tolist() for c in columns), strict=True):
            yield None if category == NONE else category, coefficient, window


class Batch:
    """Rows and what both models hold of them. All rows must be going when a round begins."""

    def __init__(self, system: System, sides: tuple[BaseSide | None, ThinkingSide | None], rows: Sequence[Row]) -> None:
        self._system = system
        self.rows: list[Row] = list(rows)
        self._base, self._thinking = sides
        self.insert(dict(enumerate(rows)))

    def insert(self, rows: dict[int, Row]) -> None:
        """Put rows into slots, whose former ones are dropped, and read what they hold already."""
        for slot, row in rows.items():
            self.rows[slot] = row
            row.thinking_read = len(row.thinking_ids) - 1
        for side in (self._base, self._thinking):
            if side is not None:
                side.insert(rows)

    def select(self, slots: Sequence[int]) -> None:
        """Go on with these slots only, in this order."""
        self.rows = [self.rows[slot] for slot in slots]
        for side in (self._base, self._thinking):
            if side is not None:
                side.select(slots)

    def round(self, aside: Aside | None = None) -> None:
        """Decide at least one token of every row. Errors leave the rows as they were before, their caches not.

        Args:
            aside: where the thinking model reads while the base drafts on; None: they take turns.
        """
        drafted: Drafts = [[] for _ in self.rows]
        base = thinking = None
        ends: list[list[int]] = []
        if self._base is not None:
            drafted, base = self._base.draft(self.rows)
        if self._thinking is not None:
            thinking, ends = self._verified(self._thinking, drafted, base, aside)
        opening = self._open(drafted, base, thinking)
        taken = self._commit(drafted, base, thinking, opening, ends)
        if self._base is not None:
            self._base.settle(self.rows)
            if thinking is not None:
                self._system.pace.verified(taken / len(self.rows))
        if self._thinking is not None:
            for row, tokens, step, end in zip(self.rows, drafted, opening.steps, ends, strict=True):
                row.thinking_read += end[max(0, len(tokens) - 1) if step is None else step] + 1
            self._thinking.settle(self.rows)

    def _verified(
        self, side: ThinkingSide, drafted: Drafts, base: BaseView | None, aside: Aside | None
    ) -> tuple[ThinkingView, list[list[int]]]:
        """See `ThinkingSide.verify`; the base goes on meanwhile, where it can."""
        if aside is None or self._base is None:
            return side.verify(self.rows, drafted, base)
        reading = aside.run(partial(side.verify, self.rows, drafted, base))
        try:
            self._base.go_on(self.rows)
        except Exception:
            wait([reading])  # nobody may use a model that still reads
            raise
        return reading.result()

    def _open(self, drafted: Drafts, base: BaseView | None, thinking: ThinkingView | None) -> Opening:
        """What is emitted where the gate opens first in every row."""
        system = self._system
        differ = None
        if base is not None and thinking is not None:
            differ = system.chooser.differ(base, thinking).tolist()
            self._learn(base, drafted, differ)
        steps = [self._first(i, tokens, differ) for i, tokens in enumerate(drafted)]
        places = [
            Place(i, step, len(row.base_ids) - 1 + step, row.position + step, row.key)
            for i, (row, step) in enumerate(zip(self.rows, steps, strict=True))
            if step is not None
        ]
        if not places:
            return Opening(steps, {}, None)
        if system.chooser.emits_thinking:
            return Opening(steps, self._thought(places, present(thinking)), None)
        candidates = present(self._base).steer(self.rows, drafted, steps, present(base), thinking, places)
        tokens = candidates.token.tolist()
        return Opening(steps, {place.row: token for place, token in zip(places, tokens, strict=True)}, candidates)

    def _first(self, row: int, tokens: Sequence[int], differ: list[list[bool]] | None) -> int | None:
        """The first step at which the gate opens; None where the answer ends before, or it never does."""
        position, key = self.rows[row].position, self.rows[row].key
        for step in range(min(max(1, len(tokens)), self.rows[row].answer.room)):
            opens = self._system.chooser.opens_unseen(position + step, key)
            if present(differ)[row][step] if opens is None else opens:
                return step
            if tokens[step] == self._system.end:
                return None
        return None

    def _learn(self, base: BaseView, drafted: Drafts, differ: list[list[bool]]) -> None:
        """Tell the pace where the models agreed: up to the first position at which they do not."""
        margins, agreed = [], []
        for row, tokens, told, differing in zip(self.rows, drafted, base.margin.tolist(), differ, strict=True):
            for step in range(min(len(tokens), row.answer.room)):
                margins.append(told[step])
                agreed.append(not differing[step])
                if differing[step] or tokens[step] == self._system.end:
                    break
        self._system.pace.learn(margins, agreed)

    def _thought(self, places: Sequence[Place], view: ThinkingView) -> dict[int, int]:
        """The thinking model's own token at each place, by row, as the speaking model's id."""
        tokens, crossed = {}, view.crossed.tolist()
        for place in places:
            sampling = self.rows[place.row].request.sampling
            if sampling is None:
                tokens[place.row] = crossed[place.row][place.step]
            else:
                tokens[place.row] = view.drawn(place.row, place.step, sampling, place.position, place.key)
        return tokens

    def _commit(
        self,
        drafted: Drafts,
        base: BaseView | None,
        thinking: ThinkingView | None,
        opening: Opening,
        ends: Sequence[Sequence[int]],
    ) -> int:
        """Add to every row what stands of its draft, and what its opening led to; how many tokens these are."""
        spoken = [
            list(tokens) if step is None else [*tokens[:step], opening.tokens[i]]
            for i, (tokens, step) in enumerate(zip(drafted, opening.steps, strict=True))
        ]
        chosen = None if base is None else _choices(base.choice, base.logprob)
        wanted = None if thinking is None else _choices(thinking.crossed, thinking.logprob)
        logprobs = iter([]) if thinking is None else iter(_logprobs(thinking, spoken))
        reasons = opening.reasons()
        taken = 0
        for i, (row, tokens) in enumerate(zip(self.rows, spoken, strict=True)):
            reason = next(reasons) if i in opening.tokens else None
            for step, token in enumerate(tokens):
                steered = step == opening.steps[i]
                choice = (None, None) if chosen is None else chosen[i][step]
                fact = Fact(
                    token,
                    steered,
                    steered and choice[0] is not None and choice[0] != token,
                    *(reason if steered and reason is not None else (None, None, None)),
                    next(logprobs, None),
                    *choice,
                    *((None, None) if wanted is None else wanted[i][step]),
                )
                if row.going and ends and self._overflows(row, ends[i][step]):
                    row.going = False
                if row.going:
                    taken += 1
                    row.take(fact, self._system.shown(token), ends=token == self._system.end)
        return taken

    def _overflows(self, row: Row, end: int) -> bool:
        """Whether what the thinking model has to read for a token is more than it can. Its answer ends there.

        Prompts and answers are checked before; but tokens of another vocabulary may cross as more than were counted.
        """
        context = present(self._system.thinking).context_length
        over = row.thinking_read + end >= context
        if over:
            _log.warning(
                "Answer %d ends after %d tokens, as truncated: in the thinking model's tokens prompt and answer "
                "fill its context of %d; lower max_gen_toks or shorten the prompt",
                row.index,
                row.position,
                context,
            )
        return over


def _choices(tokens: Tensor, logprobs: Tensor) -> list[list[tuple[int, float]]]:
    """Of every row and step the choice and its log-probability."""
    pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    return [list(zip(*both, strict=True)) for both in pairs]


def _logprobs(view: ThinkingView, spoken: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities of all tokens spoken, row after row."""
    places = [(i, step, token) for i, tokens in enumerate(spoken) for step, token in enumerate(tokens)]
    rows, steps, tokens = torch.tensor(places).T
    return view.logprobs(rows, steps, tokens[:, None])[:, 0].tolist()
