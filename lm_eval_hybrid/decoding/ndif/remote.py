"""The two sides of decoding with models on a server: a round costs one request a model.

- One request to the drafter steers where the gate opened in this round, and drafts the next; those drafts wait here
  until they are asked for. Rows without one (they are new) share another request.
- The thinking model's likeliest tokens go along, so that the server can select a candidate and draft on from it. Where
  the selection may lie outside of them, the thinking model is asked for the exact log-probabilities.
- One request to the verifier reads all drafts of a round, or all texts that are scored.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lm_eval_hybrid.decoding import views
from lm_eval_hybrid.decoding.chooser import Steerer, SteeringCandidates
from lm_eval_hybrid.decoding.context import DecodingContext, Verification
from lm_eval_hybrid.decoding.ndif.views import RemoteDraft, RemoteThinkingView
from lm_eval_hybrid.decoding.records import Emission
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, ThinkingView, Views, check_not_nan
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
            known = candidates.at(list(exact), list(exact.values()))
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
            [_scheduled(context, start + step, line.row.key) for step in range(longest)]
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
                "sampling": [_row_draws(line.row, start, longest) for line, start in zip(lines, starts, strict=True)],
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


class RemoteVerifier:
    """Implements `sides.Verifier` with a model on a server."""

    piece: ClassVar[int] = 1024  # each piece has all before it read again

    def __init__(self, context: DecodingContext, verification: Verification, model: RemoteBackend) -> None:
        self._context = context
        self._bridge = verification.bridge
        self._layer = verification.layer
        self._model = model

    def insert(self, rows: Mapping[int, Row]) -> None:
        pass  # a server keeps nothing of what it has read

    def select(self, slots: Sequence[int]) -> None:
        pass

    def commit(self, rows: Sequence[Row]) -> None:
        pass

    def verify(self, drafts: Sequence[Draft], base: BaseView, every: bool = False) -> ThinkingView:
        queries = [self._query(draft, row) for draft, row in zip(drafts, base.choice.tolist(), strict=True)]
        started = time.perf_counter()
        answer = self._ask(queries, every)
        self._context.draft_length.observe_latency("verifier", time.perf_counter() - started)
        check_not_nan(answer["logprob"], "thinking")
        scored = [query["spoken"] for query in queries]
        return RemoteThinkingView.of(answer, scored, self._bridge, partial(self._exactly, queries))

    def _query(self, draft: Draft, choices: Sequence[int]) -> dict[str, Any]:
        """One row for `programs.read`."""
        row, count = draft.row, len(draft.tokens)
        opens = [_scheduled(self._context, row.position + step, row.key) for step in range(draft.length)]
        return {
            "ids": [i for ids in (row.thinking_ids[: row.thinking_read], *draft.unread) for i in ids],
            "wanted": [row.thinking_read + end - 1 for end in draft.ends],
            "spoken": [next(iter(crossed), -1) for crossed in draft.crossed],
            "accepted": [self._bridge.agreeing(choice) for choice in choices[:count]],
            "opens": opens + [0] * (count - draft.length),
            "sampling": _row_draws(row, row.position, count) if self._context.steerer is None else None,
        }

    def _ask(self, queries: Sequence[dict[str, Any]], every: bool) -> dict[str, Any]:
        """The answer of `programs.read`."""
        choices = self._bridge.thinking_choices
        return self._model.read(
            {
                **{name: [query[name] for query in queries] for name in queries[0]},
                "every": every,
                # Where its own tokens are emitted there are no candidates to rank.
                "top": 1 if self._context.steerer is None else views.TOP_K,
                "chosen": False,
                "residual": self._context.required.thinking_residual,
                "layer": self._layer,
                "width": choices.width,
                "blocked": list(choices.blocked),
            }
        )

    def _exactly(self, queries: Sequence[dict[str, Any]], asked: Sequence[tuple[int, int, int]]) -> list[float]:
        """The log-probabilities of (row, step, thinking id)s, in order."""
        again = []
        for row in sorted({row for row, _, _ in asked}):
            wanted = [(queries[row]["wanted"][step], token) for i, step, token in asked if i == row]
            again.append(
                {
                    "ids": queries[row]["ids"][: max(place for place, _ in wanted) + 1],
                    "wanted": [place for place, _ in wanted],
                    "spoken": [token for _, token in wanted],
                    "accepted": [[] for _ in wanted],
                    "opens": [0] * len(wanted),
                    "sampling": None,
                }
            )
        logprobs = self._ask(again, every=False)["spoken_logprob"].tolist()
        return [p for query, row in zip(again, logprobs, strict=True) for p in row[: len(query["wanted"])]]


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


def _row_draws(row: Row, position: int, count: int) -> tuple[float, int, float, list[float]] | None:
    """How `count` generated tokens of a row are drawn from `position` on, as the programs take it; None: greedily."""
    sampling = row.request.sampling
    if sampling is None:
        return None
    levels = [sampling.level(position + step, row.key) for step in range(count)]
    return sampling.temperature, sampling.top_k, sampling.top_p, levels


def _scheduled(context: DecodingContext, position: int, key: bytes) -> int:
    """`Gate.scheduled` as `portable.programs` has it: 1, 0, or -1 where the models decide."""
    opens = context.gate.scheduled(position, key)
    return -1 if opens is None else int(opens)
