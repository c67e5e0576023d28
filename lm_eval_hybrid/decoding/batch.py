"""Rows decoded together, round by round: speculative decoding that steers where a draft is rejected.

In a round, the base model drafts k tokens in every row, a pass each, and the thinking model verifies them in one pass.
In every row the tokens before the first opening of the gate are accepted, the token at that position is steered, and
the rest of the draft is rolled back. Rows need not stay in step: each has its own length, in both models.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

from lm_eval_hybrid.decoding.context import DecodingContext
from lm_eval_hybrid.decoding.records import Emission, TokenDecision
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.sides import Verifier, open_sides
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, NoThinkingView, ThinkingView, Views

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Worker:
    """A single background worker: a daemon thread, so that a hung server never blocks exit.

    An executor of the standard library would wait for its threads when the interpreter exits.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        Thread(target=self._work, name="verification", daemon=True).start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Run this after all that was submitted before."""
        future: Future[T] = Future()
        self._tasks.put((future, task))
        return future

    def close(self) -> None:
        """End the thread after all that was submitted."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            future, task = item
            try:
                future.set_result(task())
            except BaseException as error:  # raised again in the thread that waits
                future.set_exception(error)
            # The result may be large, and the next task may come late.
            del item, future, task


class Batch:
    """Rows, and what both models hold of them. All rows must be running when a round begins.

    Raises:
        HybridError: see `Backend.open`.
    """

    def __init__(self, context: DecodingContext, rows: Sequence[Row]) -> None:
        self._context = context
        self.rows: list[Row] = list(rows)
        self._drafter, self._verifier = open_sides(context, len(rows))
        self.insert(dict(enumerate(rows)))

    def insert(self, rows: Mapping[int, Row]) -> None:
        """Put rows into slots, dropping what was there, and prefill what they hold already."""
        for slot, row in rows.items():
            self.rows[slot] = row
            row.thinking_read = len(row.thinking_ids) - 1
        self._drafter.insert(rows)
        if self._verifier is not None:
            self._verifier.insert(rows)

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order."""
        self.rows = [self.rows[slot] for slot in slots]
        self._drafter.select(slots)
        if self._verifier is not None:
            self._verifier.select(slots)

    def round(self, worker: Worker | None = None) -> None:
        """Decode at least one token of every row. An error leaves the rows as they were before, but not their caches.

        Args:
            worker: runs the thinking model while the base model drafts on; None: they take turns.
        """
        drafted, base = self._drafter.draft(self.rows)
        drafts = [self._draft(row, tokens) for row, tokens in zip(self.rows, drafted, strict=True)]
        thinking = NoThinkingView() if self._verifier is None else self._verify(self._verifier, drafts, base, worker)
        views = Views(base, thinking)
        self._open_gates(drafts, views)
        self._emit(drafts, views)
        committed = self._commit(drafts, self._decide(drafts, views))
        self._drafter.commit(self.rows)
        if self._verifier is not None:
            self._verifier.commit(self.rows)
            self._context.draft_length.count_verification(committed / len(self.rows))

    def _draft(self, row: Row, tokens: list[int]) -> Draft:
        end, length = self._context.end, min(len(tokens), row.room)
        if end in tokens[:length]:
            length = tokens.index(end) + 1
        return Draft(row, tokens, [self._context.cross(token) for token in tokens], length)

    def _verify(
        self, verifier: Verifier, drafts: Sequence[Draft], base: BaseView, worker: Worker | None
    ) -> ThinkingView:
        """Verify the drafts; with a worker, draft on at the same time."""
        if worker is None:
            return verifier.verify(drafts, base)
        verifying = worker.submit(partial(verifier.verify, drafts, base))
        try:
            self._drafter.continue_drafting(self.rows)
        except Exception:
            wait([verifying])  # its model must not be used again before it is done
            raise
        return verifying.result()

    def _open_gates(self, drafts: Sequence[Draft], views: Views) -> None:
        """Find where the gate first opens in each draft, and learn from that how far to draft."""
        opens = self._context.gate.opens(views, drafts)
        for draft, row in zip(drafts, opens, strict=True):
            draft.opened = row.index(True) if True in row else None
        if self._verifier is not None:
            margins: list[float] = []
            accepted: list[bool] = []
            for draft, row, margin in zip(drafts, opens, views.base.margin.tolist(), strict=True):
                verified = row if draft.opened is None else row[: draft.opened + 1]
                margins += margin[: len(verified)]
                accepted += [not opened for opened in verified]
            self._context.draft_length.observe_acceptance(margins, accepted)

    def _emit(self, drafts: Sequence[Draft], views: Views) -> None:
        """Decide the token wherever the gate opened."""
        positions = [GatePosition(i, draft.opened, draft) for i, draft in enumerate(drafts) if draft.opened is not None]
        if not positions:
            return
        steerer = self._context.steerer
        if steerer is None:
            emissions = [Emission(token) for token in views.thinking.own_tokens(positions)]
        else:
            emissions = self._drafter.steer(steerer, drafts, views, positions)
        for position, emission in zip(positions, emissions, strict=True):
            position.draft.emission = emission

    def _decide(self, drafts: Sequence[Draft], views: Views) -> list[list[TokenDecision]]:
        """The record of every token that each draft adds to its row."""
        base, alone = views.base, self._context.role == "thinking"
        columns = zip(base.choice.tolist(), base.logprob.tolist(), base.drafted_logprob.tolist(), strict=True)
        decisions = []
        for draft, row in zip(drafts, columns, strict=True):
            decided = []
            for token, choice, logprob, drafted in zip(draft.emitted, *row, strict=False):
                if alone:  # every token is the thinking model's own
                    decision = TokenDecision(
                        token,
                        steered=True,
                        thinking_choice=choice,
                        thinking_choice_logprob=logprob,
                        thinking_logprob=drafted,
                    )
                else:
                    decision = TokenDecision(token, base_choice=choice, base_logprob=logprob)
                decided.append(decision)
            if draft.emission is not None:
                changed = draft.emission.token != decided[-1].base_choice
                decided[-1] = decided[-1]._replace(steered=True, changed=changed, **draft.emission._asdict())
            decisions.append(decided)
        return decisions if self._verifier is None else _with_thinking(decisions, views.thinking)

    def _commit(self, drafts: Sequence[Draft], decisions: Sequence[Sequence[TokenDecision]]) -> int:
        """Add the decided tokens to the rows, as far as their answers go; returns how many that are."""
        committed = 0
        for draft, decided in zip(drafts, decisions, strict=True):
            row, ends = draft.row, draft.ends
            for step, decision in enumerate(decided):
                if row.running and self._overflows(row, ends[step]):
                    row.running = False
                if not row.running:
                    break
                committed += 1
                crossed = self._context.cross(decision.token)
                row.append(decision, crossed, ends=decision.token == self._context.end)
            row.thinking_read += ends[-1 if draft.opened is None else draft.opened]
        return committed

    def _overflows(self, row: Row, unread: int) -> bool:
        """Whether the thinking model's context is too short to read what precedes a token; the answer ends there.

        The lengths of prompts and answers are checked in advance, but tokens may cross as more than one id.
        """
        if self._context.verification is None:
            return False
        context_length = self._context.verification.model.context_length
        over = row.thinking_read + unread > context_length
        if over:
            _log.warning(
                "Answer %d is cut off after %d tokens: in the thinking model's tokens, prompt and answer fill its "
                "context of %d; lower max_gen_toks or shorten the prompt",
                row.index,
                row.position,
                context_length,
            )
        return over


def _with_thinking(decisions: Sequence[Sequence[TokenDecision]], view: ThinkingView) -> list[list[TokenDecision]]:
    """The decisions with what the thinking model says of them."""
    places = [(i, step, decision.token) for i, row in enumerate(decisions) for step, decision in enumerate(row)]
    rows, steps, tokens = torch.tensor(places).T
    token_logprobs = iter(view.logprobs(rows, steps, tokens[:, None])[:, 0].tolist())
    choices, logprobs = view.crossed.tolist(), view.logprob.tolist()
    return [
        [
            decision._replace(
                thinking_choice=choices[i][step],
                thinking_choice_logprob=logprobs[i][step],
                thinking_logprob=next(token_logprobs),
            )
            for step, decision in enumerate(row)
        ]
        for i, row in enumerate(decisions)
    ]
