"""Which fit, coefficients, windows and selector a bundle names: by the signed gap recovered on held-out problems.

The problems are neither those that the traces are of nor any task's documents. Base and thinking model answer them
once, the hybrid once a setting; all are scored as the tasks are.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field
from tqdm import tqdm

from lm_eval_hybrid.bundles.manifest import Count, Index, Select
from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.common.thoughts import thought_is_open
from lm_eval_hybrid.decoding.arms import policy_for
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Request
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery.traces.pair import Pair
from lm_eval_hybrid.discovery.traces.problems import Problem
from lm_eval_hybrid.results.statistics import Gap, gap
from lm_eval_hybrid.scoring.metrics import is_right
from lm_eval_hybrid.scoring.reader.answers import same_expression, same_number

_CLOSED = {"frozen": True, "config": pydantic.ConfigDict(extra="forbid")}
ROWS_FILE = "rows.jsonl"


@pydantic.dataclasses.dataclass(**_CLOSED)
class Setting:
    """One way to steer; see `bundles.manifest.SteeringSpec`."""

    select: Select = "guardrail"
    coefficients: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1)] = (1.0,)
    windows: Annotated[tuple[Index, ...], Field(min_length=1)] = (1,)

    @property
    def candidates(self) -> int:
        """How many next tokens the base is asked for at a steered place."""
        return len(self.windows) * (1 if self.select == "mlp" else len(self.coefficients))

    def policy(self) -> Policy:
        return Policy(select=self.select, coefficients=self.coefficients, windows=self.windows)


@pydantic.dataclasses.dataclass(**_CLOSED)
class CalibrationRecipe:
    """What is tried, on what.

    Attributes:
        problems: how many; 0 tries nothing, and takes the first setting and the fit with the smallest held-out loss.
        settings: in the order of preference among equals.
        max_new_tokens: of an answer.
        stop: strings that end an answer: base models run on.
        batch: answers at once.
    """

    problems: Index = 100
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)] = (Setting(),)
    max_new_tokens: Count = 2048
    stop: tuple[str, ...] = ()
    batch: Count = 32


@dataclass(frozen=True)
class Row:
    """How an arm, or the hybrid with one setting of one fit, did.

    Attributes:
        arm: `base`, `thinking` or `hybrid`.
        fit: number of the fit; None of base and thinking.
        setting: None of base and thinking.
        scores: of each problem, 0 or 1.
        steered, changed: share of all tokens.
    """

    arm: str
    fit: int | None
    setting: Setting | None
    scores: tuple[int, ...]
    steered: float
    changed: float

    @property
    def key(self) -> tuple[str, int | None, Setting | None]:
        return self.arm, self.fit, self.setting

    @property
    def accuracy(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Calibration:
    """All that was tried, and what was taken.

    Attributes:
        rows: base and thinking first; empty where nothing was tried.
        gaps: of each row of the hybrid, with its interval.
    """

    fit: int
    setting: Setting
    rows: tuple[Row, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def tried(self) -> tuple[Row, ...]:
        """The hybrid's rows, as `gaps` has them."""
        return self.rows[2:]


def calibrate(
    pair: Pair,
    fits: Sequence[Steering],
    problems: Sequence[Problem],
    recipe: CalibrationRecipe,
    seed: int,
    folder: Path,
) -> Calibration:
    """Tries the first setting with every fit, then the others with the best fit; the one that is most often right wins.

    Among equals the one that steers fewer tokens, then the one with fewer candidates, then the first. What `folder` has
    is not tried again.

    Raises:
        HybridError: where a problem has no answer.
    """
    if not all(problem.answer for problem in problems):
        raise HybridError("calibration needs problems with answers; found some without; name the field in the recipe")
    run = _Run(pair, problems, recipe, folder)
    first, *others = recipe.settings
    rows = [run.row("base", None, None, None), run.row("thinking", None, None, None)]
    rows += [run.row("hybrid", fit, first, steering) for fit, steering in enumerate(fits)]
    best = min(rows[2:], key=_worse)
    rows += [run.row("hybrid", best.fit, setting, fits[best.fit]) for setting in others]
    best = min(rows[2:], key=_worse)
    base, thinking = (row.scores for row in rows[:2])
    gaps = tuple(gap(base, row.scores, thinking, seed) for row in rows[2:])
    return Calibration(best.fit, best.setting, tuple(rows), gaps)


def _worse(row: Row) -> tuple[float, float, int]:
    return -sum(row.scores), row.steered, row.setting.candidates


class _Run:
    """Answers problems, an arm at a time; finished ones are kept in a file."""

    def __init__(self, pair: Pair, problems: Sequence[Problem], recipe: CalibrationRecipe, folder: Path) -> None:
        self._pair, self._problems, self._recipe = pair, problems, recipe
        self._path = folder / ROWS_FILE
        known = jsonl.rows(self._path, torn=True) if self._path.is_file() else ()
        rows = [_row(value) for _, value in known]
        self._known = {row.key: row for row in rows}

    def row(self, arm: str, fit: int | None, setting: Setting | None, steering: Steering | None) -> Row:
        key = arm, fit, setting
        if key not in self._known:
            answers = self._answers(policy_for(arm, (setting or self._recipe.settings[0]).policy()), steering, arm)
            records = [record for answer in answers for record in answer.records]
            shares = [sum(getattr(record, name) for record in records) / max(1, len(records)) for name in _SHARES]
            pairs = zip(self._problems, answers, strict=True)
            scores = (self._score(arm, problem, answer) for problem, answer in pairs)
            self._known[key] = Row(arm, fit, setting, tuple(scores), *shares)
            lines = [json.dumps(asdict(row)) + "\n" for row in self._known.values()]
            write_file(self._path, "".join(lines).encode())
        return self._known[key]

    def _answers(self, policy: Policy, steering: Steering | None, name: str) -> list[Generation]:
        pair, recipe = self._pair, self._recipe
        decoder = HybridDecoder(pair.base, pair.thinking, steering, policy)
        requests = []
        for problem in self._problems:
            prompts = pair.prompts(problem.prompt)
            longest = max(len(prompts.base_ids), len(prompts.thinking_ids))
            room = min(pair.base.context_length, pair.thinking.context_length) - longest
            requests.append(Request(prompts, min(recipe.max_new_tokens, room), recipe.stop))
        bar = tqdm(decoder.stream(requests, recipe.batch), total=len(requests), desc=f"calibration: {name}")
        answers = dict(bar)
        return [answers[i] for i in range(len(requests))]

    def _score(self, arm: str, problem: Problem, answer: Generation) -> int:
        opened = arm == "thinking" and thought_is_open(self._pair.thinking_text(problem.prompt))
        same = same_number if problem.numeric else same_expression
        return int(is_right(answer.text, problem.answer, same, problem.question, answer.finish, opened))


_SHARES = ("steered", "changed")


def _row(value: dict) -> Row:
    setting = value.pop("setting")
    return Row(**value | {"scores": tuple(value["scores"])}, setting=setting and Setting(**setting))
