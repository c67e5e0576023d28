"""Answering a few documents of every arm and task, to see how long that takes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.rates import Measured, Rate, fitted
from lm_eval_hybrid.experiment.plan import Experiment
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.resuming import AnswersFile


class Stopwatch(AnswersFile):
    """Takes finished answers as the file does, and notes nothing but when."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self._answers: dict[str, Generation] = {}

    def open(self, identity: dict[str, Any]) -> None:
        """There is nothing to read."""

    def add(self, key: str, generation: Generation) -> None:
        self.ends.append(time.perf_counter())


def measure(
    experiment: Experiment,
    tasks: Sequence[TaskRequests],
    documents: int,
    slots: int,
    report: Callable[[str], None],
) -> Measured:
    """Answer `documents` of each task by every arm, but never fewer than fill a batch. The models are loaded for it.

    What a batch of fewer rows would take says little of a full one; and its end, when rows run out, shows what fewer
    rows take.

    Raises:
        HybridError: see `HybridLM`.
    """
    tasks = [task for task in tasks if task.limit]
    many = max(documents, -(-slots // max(1, len(tasks))))
    chosen = [(task.task, *pair) for task in tasks for pair in _some(task, many)]
    chosen.sort(key=lambda one: -one[2])
    instances = [instance for _, instance, _ in chosen]
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    rates: dict[str, Rate] = {}
    lm: HybridLM | None = None
    for arm in experiment.arms if instances else ():
        arguments = experiment.arm_arguments(arm)
        if lm is None:
            lm = HybridLM(**arguments, batch_size=str(slots), device=experiment.device)
        report(f"measuring arm {arm}: {len(instances)} answers")
        watch = Stopwatch()
        lm.switch_arm(HybridArguments.split(arguments)[0], watch)
        counts, rates[arm] = _timed(lm, watch, instances, slots)
        for name in {task for task, _, _ in chosen}:
            of_task = tuple(count for (task, _, _), count in zip(chosen, counts, strict=True) if task == name)
            lengths[arm, name] = of_task
    return Measured(lengths, rates, f"{len(instances)} answers, {slots} at once")


def _timed(lm: HybridLM, watch: Stopwatch, instances: list[Instance], slots: int) -> tuple[list[int], Rate]:
    """(tokens of the answers, the rate)."""
    lm.generate_until(instances[-1:], disable_tqdm=True)  # what is done once only is done
    watch.ends.clear()
    _asked(lm)
    begun = time.perf_counter()
    answers = lm.generate_until(instances, disable_tqdm=True)
    asked = _asked(lm)
    counts = [len(answer.generation.records) for answer in answers]  # type: ignore[attr-defined]
    return counts, fitted(counts, slots, [end - begun for end in watch.ends], asked)


def _asked(lm: HybridLM) -> dict[str, int]:
    """Requests to servers since this was last asked, by model."""
    return {name: traffic["requests"] for name, traffic in lm.get_model_info()["hybrid_requests"].items()}


def _some(task: TaskRequests, many: int) -> list[tuple[Instance, int]]:
    """Requests from the longest prompt to the shortest, evenly, each once."""
    pairs = list({id(pair[0]): pair for pair in zip(task.instances, task.prompts, strict=True)}.values())
    many = min(many, len(pairs))
    return [pairs[(2 * i + 1) * len(pairs) // (2 * many)] for i in range(many)]
