"""A judge's verdicts on recorded answers, beside what a rule makes of them."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.agreement import Agreement, agreement
from lm_eval_hybrid.judging.cache import CachedJudge
from lm_eval_hybrid.judging.judge import load
from lm_eval_hybrid.judging.recipe import JudgeRecipe
from lm_eval_hybrid.judging.verdicts import Asked, Verdict, estimate, judge_answers
from lm_eval_hybrid.results.recordings import Recording, Score

log = logging.getLogger(__name__)


def verdicts(
    recordings: Sequence[Recording], recipe: JudgeRecipe, repeats: int, folder: Path
) -> tuple[str, list[list[Verdict]]]:
    """The judge's identity, and for each recording a verdict on each answer, in the order of `recordings.scores`.

    What it costs at most is logged first. Replies are kept in `folder`.

    Raises:
        HybridError: for a task without a question, or where the judge cannot be asked.
    """
    asked = [_asked(recording) for recording in recordings]
    together = [one for of in asked for one in of]
    judge = CachedJudge(load(recipe), folder)
    log.info("the judge %s: %s", judge.identity, estimate(together, recipe, repeats))
    found = iter(judge_answers(judge, together, repeats))
    return judge.identity, [list(islice(found, len(of))) for of in asked]


def agreements(scores: Sequence[Score], said: Sequence[Verdict]) -> dict[str, Agreement]:
    """By model, how far the scores of a recording and the judge's verdicts on the same answers agree."""
    by_model: dict[str, list[tuple[bool, bool | None]]] = {}
    for score, verdict in zip(scores, said, strict=True):
        by_model.setdefault(score.model, []).append((score.right, verdict.right))
    return {model: agreement(*zip(*pairs, strict=True)) for model, pairs in by_model.items()}


def _asked(recording: Recording) -> list[Asked]:
    for place, task in enumerate(recording.tasks):
        if task.question is None:
            raise HybridError(
                f"{recording.path}, task {place}: a judge needs the question; found none recorded; leave out --judge"
            )
    return [Asked(task.question or "", task.truth, text) for task in recording.tasks for text in task.answers.values()]
