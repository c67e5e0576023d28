"""Calibration: chooses a bundle's fit, coefficients, windows and selector by the signed gap recovered.

The problems are neither those of the traces nor documents of a task. Base and thinking model answer them once, the
hybrid once per candidate setting, and the answers are scored as in the tasks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pydantic
from pydantic import Field
from tqdm import tqdm

from lm_eval_hybrid.bundles.manifest import Count, Index, Select
from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.common.thoughts import thought_is_open
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy, policy_for
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Request
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.problems import PromptedProblem
from lm_eval_hybrid.results.statistics import Gap, gap
from lm_eval_hybrid.scoring.metrics import is_right

_CLOSED = pydantic.ConfigDict(extra="forbid")
SCORES_FILE = "rows.jsonl"


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class SteeringSetting:
    """One candidate for the bundle's policy; see `bundles.manifest.SteeringSpec`."""

    select: Select = "guardrail"
    coefficients: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1)] = (1.0,)
    windows: Annotated[tuple[Index, ...], Field(min_length=1)] = (1,)

    @property
    def candidates(self) -> int:
        """Number of steered passes of the base at an open gate."""
        return len(self.windows) * (1 if self.select == "mlp" else len(self.coefficients))

    def policy(self) -> Policy:
        return Policy(select=self.select, coefficients=self.coefficients, windows=self.windows)


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class CalibrationRecipe:
    """The candidate settings, and the problems to compare them on.

    Attributes:
        problems: number of problems; 0 skips calibration, and takes the first setting and the fit with the smallest
            held-out loss.
        settings: of equals, the first is preferred.
        max_new_tokens: of an answer.
        stop: strings that end an answer, since base models do not stop by themselves.
        batch: answers generated at once.
    """

    problems: Index = 100
    settings: Annotated[tuple[SteeringSetting, ...], Field(min_length=1)] = (SteeringSetting(),)
    max_new_tokens: Count = 2048
    stop: tuple[str, ...] = ()
    batch: Count = 32


@dataclass(frozen=True)
class ArmScores:
    """How one arm answered the problems.

    Attributes:
        scores: 0 or 1 for each problem.
        steered, changed: shares of all tokens.
    """

    scores: tuple[int, ...]
    steered: float
    changed: float

    @property
    def accuracy(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class CalibrationTrial:
    """How the hybrid answered the problems with one setting of one fit.

    Attributes:
        fit: index of the fit.
    """

    fit: int
    setting: SteeringSetting
    result: ArmScores
    gap: Gap


@dataclass(frozen=True)
class CalibrationResult:
    """The fit and setting that calibration chose.

    Attributes:
        fit: index of the fit.
        base, thinking: their answers; None if calibration was skipped.
        trials: of the hybrid, in the order of evaluation; empty if calibration was skipped.
    """

    fit: int
    setting: SteeringSetting
    base: ArmScores | None = None
    thinking: ArmScores | None = None
    trials: tuple[CalibrationTrial, ...] = ()

    def is_chosen(self, trial: CalibrationTrial) -> bool:
        return (trial.fit, trial.setting) == (self.fit, self.setting)


def calibrate(
    pair: ModelPair,
    fits: Sequence[Steering],
    problems: Sequence[PromptedProblem],
    recipe: CalibrationRecipe,
    seed: int,
    folder: Path,
) -> CalibrationResult:
    """Evaluate the first setting with every fit, then the other settings with the best fit; most right answers win.

    Of equals, the trial that steers fewer tokens wins, then the one with fewer candidates, then the first. Scores that
    `folder` holds are not computed again.

    Raises:
        HybridError: a problem has no answer.
    """
    if not all(problem.answer for problem in problems):
        raise HybridError("some calibration problems have no answer; name the field of the answer in the recipe")
    evaluator = _Evaluator(pair, problems, recipe, folder)
    base, thinking = evaluator.scores("base"), evaluator.scores("thinking")

    def trial(fit: int, setting: SteeringSetting) -> CalibrationTrial:
        result = evaluator.scores("hybrid", fit, setting, fits[fit])
        return CalibrationTrial(fit, setting, result, gap(base.scores, result.scores, thinking.scores, seed))

    first, *others = recipe.settings
    trials = [trial(fit, first) for fit in range(len(fits))]
    best = min(trials, key=_rank)
    trials += [trial(best.fit, setting) for setting in others]
    best = min(trials, key=_rank)
    return CalibrationResult(best.fit, best.setting, base, thinking, tuple(trials))


def _rank(trial: CalibrationTrial) -> tuple[int, float, int]:
    """The smaller, the better."""
    return -sum(trial.result.scores), trial.result.steered, trial.setting.candidates


class _Evaluator:
    """Answers the problems with one arm at a time, and keeps the scores in a file."""

    def __init__(
        self, pair: ModelPair, problems: Sequence[PromptedProblem], recipe: CalibrationRecipe, folder: Path
    ) -> None:
        self._pair, self._problems, self._recipe = pair, problems, recipe
        self._path = folder / SCORES_FILE
        rows = jsonl.rows(self._path, torn=True) if self._path.is_file() else ()
        self._known = dict(_from_json(row) for _, row in rows)

    def scores(
        self,
        arm: str,
        fit: int | None = None,
        setting: SteeringSetting | None = None,
        steering: Steering | None = None,
    ) -> ArmScores:
        """The scores of base or thinking, or of the hybrid with a setting of a fit."""
        key = arm, fit, setting
        if key not in self._known:
            policy = policy_for(arm, (setting or self._recipe.settings[0]).policy())
            answers = self._answers(policy, steering, arm)
            tokens = [record for answer in answers for record in answer.records]
            self._known[key] = ArmScores(
                tuple(self._score(arm, *pair) for pair in zip(self._problems, answers, strict=True)),
                steered=sum(token.steered for token in tokens) / max(1, len(tokens)),
                changed=sum(token.changed for token in tokens) / max(1, len(tokens)),
            )
            lines = [json.dumps(_to_json(key, scores)) + "\n" for key, scores in self._known.items()]
            write_file(self._path, "".join(lines).encode())
        return self._known[key]

    def _answers(self, policy: Policy, steering: Steering | None, arm: str) -> list[Generation]:
        pair, recipe = self._pair, self._recipe
        decoder = HybridDecoder(pair.base, pair.thinking, steering, policy)
        requests = []
        for problem in self._problems:
            prompts = pair.prompts(problem.prompt)
            longest = max(len(prompts.base_ids), len(prompts.thinking_ids))
            room = min(pair.base.context_length, pair.thinking.context_length) - longest
            requests.append(Request(prompts, min(recipe.max_new_tokens, room), recipe.stop))
        bar = tqdm(decoder.stream(requests, recipe.batch), total=len(requests), desc=f"calibration: {arm}")
        answers = dict(bar)
        return [answers[i] for i in range(len(requests))]

    def _score(self, arm: str, problem: PromptedProblem, answer: Generation) -> int:
        opened = arm == "thinking" and thought_is_open(self._pair.thinking_text(problem.prompt))
        return int(is_right(answer.text, problem.answer, problem.question, answer.finish, opened))


_Key: TypeAlias = tuple[str, int | None, SteeringSetting | None]
"""(arm, fit, setting)."""


def _to_json(key: _Key, scores: ArmScores) -> dict[str, Any]:
    arm, fit, setting = key
    return {"arm": arm, "fit": fit, "setting": None if setting is None else asdict(setting), **asdict(scores)}


def _from_json(row: dict[str, Any]) -> tuple[_Key, ArmScores]:
    setting = None if row["setting"] is None else SteeringSetting(**row["setting"])
    scores = ArmScores(tuple(row["scores"]), row["steered"], row["changed"])
    return (row["arm"], row["fit"], setting), scores
