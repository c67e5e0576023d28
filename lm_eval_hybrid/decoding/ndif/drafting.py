"""The two sides of a batch whose models are on a server: a round costs one request each.

- The base resolves the openings of a round and, in the same request, drafts the next round; what it drafted waits here
  until it is asked for. Rows whose drafts were not foreseen (they have just begun) cost a request together.
- What a candidate is judged by, the likeliest tokens of the thinking model, goes along, so that the base can go on from
  the candidate taken. Where none of these is among the candidates, the thinking model is asked for theirs.
- The thinking model reads all drafts in one pass, and tells what is needed of the places where the gate opens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lm_eval_hybrid.decoding.chooser import Candidates, Place, Trial, present
from lm_eval_hybrid.decoding.ndif.reader import Question, RemoteReader, levels
from lm_eval_hybrid.decoding.ndif.views import AheadView
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.sides import Drafts, Steps
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.tokens.bridge import Choices
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, check_numbers
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.portable.sampling import drawn

_ALONE = 64
"""Tokens asked for at once of a model that nobody checks."""


@dataclass(frozen=True)
class _Line:
    """A row as a server is to read it.

    Attributes:
        read: its tokens; pending: the next, or -1 for what an opening leads to.
        position: index of the first token to be drafted; room: tokens that may be.
    """

    row: Row
    read: list[int]
    pending: int
    position: int
    room: int


@dataclass(frozen=True)
class Ahead:
    """What a model would say after a row's tokens.

    Attributes:
        length, last: of these tokens: how many they are, and the last.
        tokens: [k] int64; choice: what each would be were it not drawn.
        margin, logprob: [k] float32; see `views.BaseView`. spoken: [k], the log-probability of `tokens`.
        residual: [k, d] float32, where it was asked for.
    """

    length: int
    last: int
    tokens: Tensor
    choice: Tensor
    margin: Tensor
    logprob: Tensor
    spoken: Tensor
    residual: Tensor | None

    def follows(self, ids: Sequence[int]) -> bool:
        """Whether it was said after these tokens."""
        return (self.length, self.last) == (len(ids), ids[-1])


class _Drafting:
    """Asks a model on a server for drafts."""

    def __init__(self, system: System, model: NdifModel, layer: int, choices: Choices, longest: int) -> None:
        self._system = system
        self._model = model
        self._layer = layer
        self._choices = choices
        self._longest = longest

    def ask(self, lines: Sequence[_Line], residual: bool, steering: dict[str, Any] | None) -> dict[str, Any]:
        """See `programs.draft`; its arrays, and `ahead`: what follows each line."""
        system = self._system
        # Where a model speaks alone every token is its own, and no opening ends its draft.
        alone = system.base is None
        opens = [
            [0 if alone else _opens(system, line.row, line.position + step) for step in range(self._longest)]
            for line in lines
        ]
        edges, chances = system.pace.table()
        given = {
            "ids": [line.read for line in lines],
            "pending": [line.pending for line in lines],
            "room": [line.room for line in lines],
            "end": -1 if system.end is None else system.end,
            "opens": opens,
            "longest": self._longest,
            "edges": edges,
            "chances": chances,
            "ratio": system.pace.ratio if system.thinking is not None and system.base is not None else 0.0,
            "width": self._choices.width,
            "blocked": list(self._choices.blocked),
            "layer": self._layer,
            "residual": residual,
            "sampling": [levels(line.row, line.position, self._longest) for line in lines],
            "drawn": drawn if any(line.row.request.sampling for line in lines) else None,
            "steering": steering,
        }
        begun = time.perf_counter()
        found = self._model.draft(given)
        spent = time.perf_counter() - begun
        steps = found["tokens"].shape[1]
        system.pace.told(self, max(0.0, spent - steps * found["step"]), found["step"])
        check_numbers(found["margin"], "drafting")
        found["ahead"] = [self._ahead(i, line, found, opens[i]) for i, line in enumerate(lines)]
        return found

    def _ahead(self, i: int, line: _Line, found: dict[str, Any], opens: Sequence[int]) -> Ahead | None:
        """The draft of a line, up to where it is known to end; None for one whose opening is not resolved."""
        last = line.pending if line.pending >= 0 else int(found["resolved"][found["places"].index(i)])
        if last < 0:
            return None
        tokens = found["tokens"][i].tolist()
        ends = (
            step + 1
            for step, token in enumerate(tokens)
            if opens[step] == 1 or token == self._system.end or step + 1 >= line.room
        )
        size = next(ends, len(tokens))
        residual = found["residual"][i, :size] if "residual" in found else None
        told = (found[name][i, :size] for name in ("tokens", "choice", "margin", "logprob", "spoken"))
        return Ahead(len(line.read) + 1, last, *told, residual)


class RemoteBase:
    """Implements `sides.BaseSide`."""

    def __init__(self, system: System, model: NdifModel) -> None:
        self._system = system
        choices = Choices(None, ()) if system.bridge is None else system.bridge.base_choices
        longest = system.longest if system.thinking is not None else _ALONE
        self._drafting = _Drafting(system, model, system.layer, choices, longest)
        self._ahead: dict[int, Ahead] = {}  # by row's index

    def insert(self, rows: dict[int, Row]) -> None:
        for row in rows.values():
            self._ahead.pop(row.index, None)

    def select(self, slots: Sequence[int]) -> None:
        pass  # what is kept is kept by row

    def settle(self, rows: Sequence[Row]) -> None:
        pass  # what was foreseen of other tokens than those that stand is not taken for theirs

    def draft(self, rows: Sequence[Row]) -> tuple[Drafts, BaseView]:
        new = [row for row in rows if not self._foreseen(row)]
        if new:
            lines = [_Line(row, row.base_ids[:-1], row.base_ids[-1], row.position, row.answer.room) for row in new]
            self._foresee(lines, self._drafting.ask(lines, self._system.chooser.asks.network, None))
        ahead = [self._ahead.pop(row.index) for row in rows]
        self._system.pace.drafted(max(len(told.tokens) for told in ahead))
        return [told.tokens.tolist() for told in ahead], _base_view(ahead)

    def go_on(self, rows: Sequence[Row]) -> None:
        pass  # it goes on as far as it makes sense in the same request

    def steer(
        self,
        rows: Sequence[Row],
        drafted: Drafts,
        steps: Steps,
        base: BaseView,
        thinking: ThinkingView | None,
        places: Sequence[Place],
    ) -> Candidates:
        trial = self._system.chooser.trial(base, thinking, places)
        lines = self._lines(rows, drafted, steps)
        found = self._tried(lines, rows, trial, thinking, places, trial.taken)
        taken, resolved = found["taken"], found["resolved"]
        unknown = [i for i, known in enumerate(taken.tolist()) if known < 0]
        if unknown:  # the likeliest candidate is not among the likeliest tokens
            some = [places[i] for i in unknown]
            taken[unknown] = self._system.chooser.likeliest(thinking, some, found["candidates"][unknown])
            opened = {rows[place.row].index for place in some}
            some_lines = [line for line in lines if line.row.index in opened]
            again = self._tried(some_lines, rows, trial.at(unknown), thinking, some, taken[unknown])
            resolved[unknown] = again["resolved"]
        check_numbers(found["said"], "steered base")
        candidates = self._system.chooser.candidates(trial, found["candidates"], taken, None)
        return replace(candidates, token=resolved)

    def _tried(
        self,
        lines: Sequence[_Line],
        rows: Sequence[Row],
        trial: Trial,
        thinking: ThinkingView | None,
        places: Sequence[Place],
        taken: Tensor | None,
    ) -> dict[str, Any]:
        slots = {line.row.index: i for i, line in enumerate(lines)}
        sampling = [rows[place.row].request.sampling for place in places]
        steering = {
            "rows": [slots[rows[place.row].index] for place in places],
            **self._system.chooser.as_sent(trial, thinking, places, taken),
            "sampling": [
                None if how is None else (how.temperature, how.top_k, how.top_p, how.level(place.position, place.key))
                for how, place in zip(sampling, places, strict=True)
            ],
        }
        found = self._drafting.ask(lines, self._system.chooser.asks.network, steering)
        self._foresee(lines, found)
        return found

    def _lines(self, rows: Sequence[Row], drafted: Drafts, steps: Steps) -> list[_Line]:
        """Rows as they stand after the round: those that go on."""
        lines = []
        for row, tokens, step in zip(rows, drafted, steps, strict=True):
            standing = tokens if step is None else tokens[:step]
            spoken = len(standing) + (step is not None)
            room = row.answer.room - spoken
            if step is not None:
                lines.append(_Line(row, row.base_ids + standing, -1, row.position + spoken, room))
            elif room > 0 and standing[-1] != self._system.end:
                lines.append(_Line(row, row.base_ids + standing[:-1], standing[-1], row.position + spoken, room))
        return lines

    def _foresee(self, lines: Sequence[_Line], found: dict[str, Any]) -> None:
        for line, ahead in zip(lines, found["ahead"], strict=True):
            if ahead is not None:
                self._ahead[line.row.index] = ahead

    def _foreseen(self, row: Row) -> bool:
        ahead = self._ahead.get(row.index)
        return ahead is not None and ahead.follows(row.base_ids)


class RemoteThinking:
    """Implements `sides.ThinkingSide`."""

    def __init__(self, system: System, model: NdifModel) -> None:
        self._system = system
        self._bridge = present(system.bridge)
        self._reader = RemoteReader(system, model, self._bridge)
        self._drafting = _Drafting(system, model, system.sae_layer, self._bridge.thinking_choices, _ALONE)
        self._ahead: dict[int, Ahead] = {}  # by row's index, where the thinking model speaks alone

    def insert(self, rows: dict[int, Row]) -> None:
        for row in rows.values():
            self._ahead.pop(row.index, None)

    def select(self, slots: Sequence[int]) -> None:
        pass  # what is kept is kept by row

    def settle(self, rows: Sequence[Row]) -> None:
        pass  # nothing is kept of what was read

    def verify(
        self, rows: Sequence[Row], drafted: Drafts, base: BaseView | None
    ) -> tuple[ThinkingView, list[list[int]]]:
        if base is None:
            return self._spoken(rows), [[len(row.thinking_ids) - 1 - row.thinking_read] for row in rows]
        questions, ends = [], []
        for row, tokens, choices in zip(rows, drafted, base.choice.tolist(), strict=True):
            question = self._question(row, tokens, choices)
            questions.append(question)
            ends.append([place - row.thinking_read for place in question.places])
        begun = time.perf_counter()
        view = self._reader.read(questions, every=False)
        self._system.pace.told(self, time.perf_counter() - begun)
        return view, ends

    def _question(self, row: Row, tokens: Sequence[int], choices: Sequence[int]) -> Question:
        """What it says where each of a row's drafted tokens was chosen."""
        crossings = [self._system.shown(token) for token in tokens]
        ids, places = list(row.thinking_ids), [len(row.thinking_ids) - 1]
        for crossed in crossings[:-1]:
            ids += crossed
            places.append(len(ids) - 1)
        return Question(
            ids,
            places,
            spoken=[crossed[0] for crossed in crossings],
            accepted=[self._bridge.agreeing(choice) for choice in choices[: len(places)]],
            opens=self._opens(row, tokens),
            sampling=levels(row, row.position, len(tokens)) if self._system.chooser.emits_thinking else None,
        )

    def _opens(self, row: Row, tokens: Sequence[int]) -> list[int]:
        """As `programs.read` has it; shut where the answer has ended."""
        opens = []
        for step in range(len(tokens)):
            over = step >= row.answer.room or self._system.end in tokens[:step]
            opens.append(0 if over else _opens(self._system, row, row.position + step))
        return opens

    def _spoken(self, rows: Sequence[Row]) -> ThinkingView:
        """Where it speaks alone: its next token in every row."""
        new = [row for row in rows if not self._foreseen(row)]
        if new:
            lines = [
                _Line(row, row.thinking_ids[:-1], row.thinking_ids[-1], row.position, row.answer.room) for row in new
            ]
            for row, ahead in zip(new, self._drafting.ask(lines, False, None)["ahead"], strict=True):
                self._ahead[row.index] = ahead
        ahead = [self._ahead[row.index] for row in rows]
        for row, told in zip(rows, ahead, strict=True):
            left = replace(
                told,
                length=told.length + 1,
                last=int(told.tokens[0]),
                tokens=told.tokens[1:],
                choice=told.choice[1:],
                margin=told.margin[1:],
                logprob=told.logprob[1:],
                spoken=told.spoken[1:],
            )
            self._ahead[row.index] = left
        return AheadView.of(ahead, self._bridge)

    def _foreseen(self, row: Row) -> bool:
        ahead = self._ahead.get(row.index)
        return ahead is not None and len(ahead.tokens) > 0 and ahead.follows(row.thinking_ids)


def _opens(system: System, row: Row, position: int) -> int:
    opens = system.chooser.opens_unseen(position, row.key)
    return -1 if opens is None else int(opens)


def _base_view(ahead: Sequence[Ahead]) -> BaseView:
    residuals = [told.residual for told in ahead if told.residual is not None]
    return BaseView(
        pad_sequence([told.choice for told in ahead], batch_first=True),
        pad_sequence([told.margin for told in ahead], batch_first=True),
        pad_sequence([told.logprob for told in ahead], batch_first=True),
        pad_sequence(residuals, batch_first=True) if residuals else None,
        None,
    )
