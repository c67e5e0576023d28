"""A base model on a server (or one that decodes alone): a round costs one request.

- One request steers where the gate opened in this round, and drafts the next; those drafts wait here until they are
  asked for. Rows without one (they are new) share another request.
- The thinking model's likeliest tokens go along, so that the server can select a candidate and draft on from it. Where
  the selection may lie outside of them, the thinking model is asked for the exact log-probabilities.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lm_eval_hybrid.decoding.chooser import Steerer, SteeringCandidates
from lm_eval_hybrid.decoding.context import DecodingContext
from lm_eval_hybrid.decoding.ndif.verifying import row_draws, scheduled
from lm_eval_hybrid.decoding.ndif.views import RemoteDraft
from lm_eval_hybrid.decoding.records import Emission
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, Views, check_not_nan
from lm_eval_hybrid.models.protocol import RemoteBackend

_EMITTED = -1

_LONGEST_ALONE = 64
"""The most tokens drafted in one request by a model that decodes alone."""


class _Line(NamedTuple):
    """A row, and the tokens added in this round; _EMITTED stands for what is emitted where the gate opened."""

    row: Row
    added: list[int]


class RemoteDrafter:
    """Implements `sides.Drafter` with a model on a server."""

    piece: ClassVar[int] = 1024  # each piece has all before it read again
    steered_at_once: ClassVar[int] = 16  # each position is a row of its own
    longest: ClassVar[int] = 48  # one more step is cheap, one more request is not

    def __init__(self, context: DecodingContext, model: RemoteBackend, longest: int) -> None:
        self._context = context
        self._model = model
        self._alone = context.verification is None
        self._longest = _LONGEST_ALONE if self._alone else longest
        self._waiting: dict[int, RemoteDraft] = {}  # by the row's index

    def insert(self, rows: Mapping[int, Row]) -> None:
        for row in rows.values():
            self._waiting.pop(row.index, None)

    def select(self, slots: Sequence[int]) -> None:
        pass  # drafts wait by row, and the server keeps nothing

    def commit(self, rows: Sequence[Row]) -> None:
        pass  # a draft after other tokens than the row's is never used

    def draft(self, rows: Sequence[Row]) -> tuple[list[list[int]], BaseView]:
        lines = [
            _Line(row, [])
            for row in rows
            if row.index not in self._waiting or not self._waiting[row.index].follows(row.ids)
        ]
        if lines:
            self._ask(lines, None)
        drafts = [self._waiting.pop(row.index) for row in rows]
        self._context.draft_length.count_drafting(max(len(draft.tokens) for draft in drafts))
        padded = BaseView.combined([draft.view for draft in drafts], partial(pad_sequence, batch_first=True))
        return [draft.tokens for draft in drafts], padded

    def continue_drafting(self, rows: Sequence[Row]) -> None:
        pass  # each request drafts as far as makes sense

    def steer(
        self, steerer: Steerer, drafts: Sequence[Draft], views: Views, positions: Sequence[GatePosition]
    ) -> list[Emission]:
        candidates = steerer.candidates(views, positions)
        lines = [
            _Line(draft.row, draft.accepted if draft.opened is None else [*draft.accepted, _EMITTED])
            for draft in drafts
            if draft.opened is not None
            or (draft.row.room > len(draft.tokens) and draft.tokens[-1] != self._context.end)
        ]
        answer = self._ask(lines, _steering(steerer, candidates, views, positions), positions)
        selected, tokens = answer["taken"].tolist(), answer["resolved"].tolist()
        if exact := _exact_selection(steerer, candidates, answer, views, positions):
            some = [positions[i] for i in exact]
            known = candidates.at(exact).with_selection(list(exact.values()))
            opened = {position.draft.row.index for position in some}
            lines = [line for line in lines if line.row.index in opened]
            again = self._ask(lines, _steering(steerer, known, views, some), some)["resolved"].tolist()
            for (i, index), token in zip(exact.items(), again, strict=True):
                selected[i], tokens[i] = index, token
        return steerer.emissions(candidates, selected, tokens)

    def _ask(
        self, lines: Sequence[_Line], steering: dict[str, Any] | None, positions: Sequence[GatePosition] = ()
    ) -> dict[str, Any]:
        """The answer of `programs.draft`, which steers at the positions; the drafts in it then wait."""
        context, longest = self._context, self._longest
        slots = {line.row.index: i for i, line in enumerate(lines)}
        if steering is not None:
            steering["rows"] = [slots[position.draft.row.index] for position in positions]
        ids = [line.row.ids + line.added for line in lines]
        starts = [line.row.position + len(line.added) for line in lines]
        rooms = [line.row.room - len(line.added) for line in lines]
        opens = [
            [scheduled(context, start + step, line.row.key) for step in range(longest)]
            for line, start in zip(lines, starts, strict=True)
        ]
        edges, chances = context.draft_length.table()
        started = time.perf_counter()
        answer = self._model.draft(
            {
                "ids": [row[:-1] for row in ids],
                "pending": [row[-1] for row in ids],
                "room": rooms,
                "end": -1 if context.end is None else context.end,
                "opens": opens,
                "longest": longest,
                "edges": edges,
                "chances": chances,
                "ratio": 0.0 if self._alone else context.draft_length.tokens_per_step,
                "residual": context.required.base_residual,
                "sampling": [row_draws(line.row, start, longest) for line, start in zip(lines, starts, strict=True)],
                "steering": steering,
                **self._allowed,
            }
        )
        seconds, step = time.perf_counter() - started, answer["step"]
        context.draft_length.observe_latency("drafter", max(0.0, seconds - answer["tokens"].shape[1] * step), step)
        check_not_nan(answer["margin"], context.role)
        view = BaseView(answer["choice"], answer["margin"], answer["logprob"], answer["spoken"], answer.get("residual"))
        for i, (line, tokens) in enumerate(zip(lines, answer["tokens"].tolist(), strict=True)):
            last = ids[i][-1] if ids[i][-1] != _EMITTED else int(answer["resolved"][answer["places"].index(i)])
            if last < 0:
                continue  # not selected yet
            # A draft ends where the gate is scheduled to open, and where the answer does.
            ends = (s for s, t in enumerate(tokens, 1) if opens[i][s - 1] == 1 or t == context.end or s >= rooms[i])
            size = next(ends, len(tokens))
            self._waiting[line.row.index] = RemoteDraft(len(ids[i]), last, tokens[:size], view.row(i, size))
        return answer

    @property
    def _allowed(self) -> dict[str, Any]:
        """Hook layer and token choices, as the programs take them."""
        choices = self._context.choices
        return {"layer": self._context.layer, "width": choices.width, "blocked": list(choices.blocked)}

    def score(self, drafts: Sequence[Draft]) -> BaseView:
        # Where the gate opens is not known yet, so residuals are requested everywhere.
        residual = self._context.required.base_residual
        answer = self._model.read(
            {
                "ids": [draft.row.ids + draft.tokens[:-1] for draft in drafts],
                "wanted": [
                    list(range(len(draft.row.ids) - 1, len(draft.row.ids) - 1 + len(draft.tokens))) for draft in drafts
                ],
                "spoken": [draft.tokens for draft in drafts],
                "accepted": [[[]] * len(draft.tokens) for draft in drafts],
                "opens": [[int(residual)] * len(draft.tokens) for draft in drafts],
                "every": True,
                "top": 1,
                "chosen": False,
                "residual": residual,
                "sampling": [None] * len(drafts),
                **self._allowed,
            }
        )
        check_not_nan(answer["logprob"], self._context.role)
        choice, logprob = answer["choice"], answer["logprob"]
        residuals = None
        if residual:
            residuals = torch.zeros(*choice.shape, answer["residual"].shape[-1])
            residuals[answer["rows"], answer["steps"]] = answer["residual"]
        return BaseView(choice, torch.zeros_like(logprob), logprob, answer["spoken_logprob"], residuals)

    def score_steered(
        self, steerer: Steerer, views: Views, positions: Sequence[GatePosition]
    ) -> tuple[Tensor, list[int]]:
        candidates = steerer.candidates(views, positions)
        given = [(position.draft, position.step) for position in positions]
        answer = self._model.draft(
            {
                "ids": [draft.row.ids + draft.tokens[:step] for draft, step in given],
                "pending": [-1] * len(positions),
                "longest": 0,
                "residual": False,
                "sampling": [None] * len(positions),
                "steering": {
                    **_steering(steerer, candidates, views, positions),
                    "rows": list(range(len(positions))),
                    "own": [draft.tokens[step] for draft, step in given],
                },
                **self._allowed,
            }
        )
        selected = answer["taken"].tolist()
        for i, index in _exact_selection(steerer, candidates, answer, views, positions).items():
            selected[i] = index
        each = torch.arange(len(positions))
        return answer["own"][each, selected], answer["candidates"][each, selected].tolist()


def _steering(
    steerer: Steerer, candidates: SteeringCandidates, views: Views, positions: Sequence[GatePosition]
) -> dict[str, Any]:
    """Candidates as `programs.draft` takes them, with what it needs to select one, but without their rows."""
    selected = candidates.selected
    return {
        "direction": candidates.direction.cpu(),
        "coefficients": candidates.coefficients.float(),
        "windows": steerer.windows,
        "preferred": steerer.preferred,
        "taken": selected,
        "judges": [tuple(views.thinking.top_k(position)) for position in positions] if selected is None else None,
        # Plain tuples: a server does not have our classes.
        "sampling": [None if position.draw is None else tuple(position.draw) for position in positions],
    }


def _exact_selection(
    steerer: Steerer,
    candidates: SteeringCandidates,
    answer: dict[str, Any],
    views: Views,
    positions: Sequence[GatePosition],
) -> dict[int, int]:
    """The selected candidate, by index of the position, where the server could not tell.

    That is where the likeliest candidate's token may not be among the likeliest tokens that were sent.
    """
    check_not_nan(answer["said"], "steered base")
    unknown = [i for i, index in enumerate(answer["taken"].tolist()) if index < 0]
    if not unknown:
        return {}
    some, tokens = [positions[i] for i in unknown], answer["candidates"][unknown]
    return dict(zip(unknown, steerer.select(candidates.at(unknown), tokens, views, some), strict=True))
