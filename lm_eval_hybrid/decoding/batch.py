"""Rows decoded together, round by round: draft and verify (DESIGN, section 2).

A round: the base drafts k tokens, one after the other; the thinking model reads them in one pass; of every row the
tokens before the first position at which the gate opens stand, and that position is steered. What was drafted beyond
is taken back. Rows need no step in common: each has its own length, in both models.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.answer import Fact
from lm_eval_hybrid.decoding.choosing import NONE, Candidates, Place, present
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, read_thinking

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
    """Rows with their caches. All rows must be going when a round begins."""

    def __init__(self, system: System, rows: Sequence[Row]) -> None:
        self._system = system
        self.rows: list[Row] = list(rows)
        self._base, self._thinking = system.open(len(rows), system.longest)
        self.admit(dict(enumerate(rows)))

    def admit(self, rows: dict[int, Row]) -> None:
        """Put rows into slots, whose former ones are dropped, and read what they hold already."""
        for slot, row in rows.items():
            self.rows[slot] = row
            row.thinking_read = len(row.thinking_ids) - 1
        if self._base is not None:
            self._base.admit(list(rows), [row.base_ids[:-1] for row in rows.values()])
        if self._thinking is not None:
            self._thinking.admit(list(rows), [row.thinking_ids[:-1] for row in rows.values()])

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these slots only, in this order."""
        self.rows = [self.rows[slot] for slot in slots]
        for sequences in (self._base, self._thinking):
            if sequences is not None:
                sequences.keep(slots)

    def round(self) -> None:
        """Decide at least one token of every row. Errors leave the rows as they were before, their caches not."""
        drafted, base = self._draft()
        thinking, ends = self._verify(drafted)
        opening = self._open(drafted, base, thinking)
        k = len(drafted[0]) or 1
        lasts = [k - 1 if step is None else step for step in opening.steps]
        taken = self._commit(drafted, base, thinking, opening, ends)
        if base is not None:
            present(self._base).rewind([len(row.base_ids) - 1 for row in self.rows])
            if thinking is not None:
                self._system.pace.spend(k, taken / len(self.rows))
        if thinking is not None:
            for row, last, end in zip(self.rows, lasts, ends, strict=True):
                row.thinking_read += end[last] + 1
            present(self._thinking).rewind([row.thinking_read for row in self.rows])

    def _draft(self) -> tuple[list[list[int]], BaseView | None]:
        """The tokens that the base would say next, the same number in every row, and what it chose them from."""
        drafted: list[list[int]] = [[] for _ in self.rows]
        if self._base is None:
            return drafted, None
        pending, views = [row.base_ids[-1] for row in self.rows], []
        standing = torch.ones(len(self.rows))
        longest = self._system.longest if self._thinking is not None else 1
        sampled = any(row.request.sampling for row in self.rows)
        while True:
            reading = self._base.read(torch.tensor(pending)[:, None])
            view = BaseView.of(reading.logits, reading.residual, self._system.bridge, keep=sampled)
            views.append(view)
            pending = self._spoken(view, len(views) - 1)
            for tokens, token in zip(drafted, pending, strict=True):
                tokens.append(token)
            standing *= self._stands(view, pending, len(views))
            if len(views) >= longest or not self._system.pace.goes_on(standing):
                return drafted, BaseView.joined(views)

    def _spoken(self, view: BaseView, step: int) -> list[int]:
        """The base's next token in every row: its choice, or one drawn."""
        tokens = view.choice[:, 0].tolist()
        for i, row in enumerate(self.rows):
            if row.request.sampling is not None:
                logits = present(view.logits)[i, 0]
                tokens[i] = row.request.sampling.pick(logits, row.position + step, row.key)
        return tokens

    def _stands(self, view: BaseView, tokens: Sequence[int], drafted: int) -> Tensor:
        """[rows]: the chance that the last drafted token stands, and another may follow."""
        chances = self._system.pace.chances(view.margin[:, 0].cpu())
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            opens = self._system.chooser.opens_unseen(row.position + drafted - 1, row.key)
            if opens or token == self._system.end or drafted >= row.answer.room:
                chances[i] = 0.0
            elif opens is not None:
                chances[i] = 1.0
        return chances

    def _verify(self, drafted: Sequence[Sequence[int]]) -> tuple[ThinkingView | None, list[list[int]]]:
        """What the thinking model says after each token that the base chose after, and where in its pass that is."""
        if self._thinking is None:
            return None, []
        crossings = [
            [row.thinking_ids[row.thinking_read :], *map(self._system.shown, tokens[:-1])]
            for row, tokens in zip(self.rows, drafted, strict=True)
        ]
        return read_thinking(self._thinking, crossings, present(self._system.bridge))

    def _open(self, drafted: Sequence[Sequence[int]], base: BaseView | None, thinking: ThinkingView | None) -> Opening:
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
        candidates = system.chooser.steer(present(self._base), present(base), thinking, places)
        tokens = candidates.token.tolist()
        for i, place in enumerate(places):
            sampling = self.rows[place.row].request.sampling
            if sampling is not None:
                logits = candidates.logits[i]
                logits = logits if system.bridge is None else system.bridge.base_logits(logits)
                tokens[i] = sampling.pick(logits, place.position, place.key)
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

    def _learn(self, base: BaseView, drafted: Sequence[Sequence[int]], differ: list[list[bool]]) -> None:
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
        tokens = {}
        bridge, crossed = present(self._system.bridge), view.crossed.tolist()
        for place in places:
            sampling = self.rows[place.row].request.sampling
            if sampling is None:
                tokens[place.row] = crossed[place.row][place.step]
            else:
                logits = bridge.thinking_logits(view.logits[place.row, place.step])
                drawn = sampling.pick(logits, place.position, place.key)
                tokens[place.row] = int(bridge.to_base(torch.tensor(drawn)))
        return tokens

    def _commit(
        self,
        drafted: Sequence[Sequence[int]],
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
