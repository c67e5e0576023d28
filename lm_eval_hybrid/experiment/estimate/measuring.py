"""Measurements to estimate from: a few documents answered now, or what a former run left."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.timing import Measured, Rate, fitted_rate
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.resuming import AnswersFile
from lm_eval_hybrid.results import outputs


class _Stopwatch(AnswersFile):
    """Records when answers are finished, in place of the answers."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self._answers: dict[str, Generation] = {}

    def open(self, identity: dict[str, Any]) -> None:
        """There is no file to read."""

    def add(self, key: str, generation: Generation) -> None:
        self.ends.append(time.perf_counter())


def measure(
    experiment: Experiment,
    tasks: Sequence[TaskRequests],
    documents: int,
    batch_size: int,
    report: Callable[[str], None],
) -> Measured:
    """Load the models and answer `documents` of each task by every arm, at least as many as fill a batch.

    A smaller batch would tell little about a full one, and a full one ends with few rows, so it tells about those too.

    Raises:
        HybridError: as `HybridLM`.
    """
    tasks = [task for task in tasks if task.limit]
    many = max(documents, -(-batch_size // max(1, len(tasks))))
    chosen = [(task.task, *pair) for task in tasks for pair in _evenly(task, many)]
    chosen.sort(key=lambda one: -one[2])
    instances = [instance for _, instance, _ in chosen]
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    rates: dict[str, Rate] = {}
    lm: HybridLM | None = None
    for arm in experiment.arms if instances else ():
        arguments = experiment.arm_arguments(arm)
        if lm is None:
            lm = HybridLM(**arguments, batch_size=str(batch_size), device=experiment.device)
        report(f"measuring arm {arm}: {len(instances)} answers")
        watch = _Stopwatch()
        lm.switch_arm(HybridArguments.split(arguments)[0], watch)
        lm.generate_until(instances[-1:], disable_tqdm=True)  # one-time work
        watch.ends.clear()
        _requests(lm)
        begun = time.perf_counter()
        answers = lm.generate_until(instances, disable_tqdm=True)
        requests = _requests(lm)
        counts = [len(answer.generation.records) for answer in answers]  # type: ignore[attr-defined]  # HybridAnswer
        rates[arm] = fitted_rate(counts, batch_size, [end - begun for end in watch.ends], requests)
        for name in {task for task, _, _ in chosen}:
            own = (count for (task, _, _), count in zip(chosen, counts, strict=True) if task == name)
            lengths[arm, name] = tuple(own)
    return Measured(lengths, rates, f"{len(instances)} answers, {batch_size} at once")


def read_former(folder: Path) -> Measured:
    """The lengths and the speed of the runs in a folder.

    A run records its speed in tokens per second, which holds at its batch size.

    Raises:
        HybridError: there are no results of model `hybrid`, or they cannot be read.
    """
    runs = outputs.read(folder).runs
    lengths = {(run.arm, run.task): tuple(d.counts.tokens for d in run.documents if d.counts) for run in runs}
    rates = {run.arm: Rate(0.0, 0.0, 1 / run.tokens_per_second, {}) for run in runs if run.tokens_per_second}
    return Measured({key: counts for key, counts in lengths.items() if counts}, rates, f"{folder}, at its batch size")


def _requests(lm: HybridLM) -> dict[str, int]:
    """Requests to servers since the last call, by model."""
    return {name: traffic["requests"] for name, traffic in lm.get_model_info()["hybrid_requests"].items()}


def _evenly(task: TaskRequests, many: int) -> list[tuple[Instance, int]]:
    """Different requests with their prompts' tokens, spread evenly from the longest prompt to the shortest."""
    pairs = list({id(pair[0]): pair for pair in zip(task.instances, task.prompts, strict=True)}.values())
    many = min(many, len(pairs))
    return [pairs[(2 * i + 1) * len(pairs) // (2 * many)] for i in range(many)]
