"""How long a run will take: tokens, seconds and requests of every arm, each with its origin.

In a batch, time is not linear in documents: a step advances all rows by a token, so the last answers, decoded with few
beside them, cost more. Hence time is so much for a document (its prefill), for a step, and for a row of a step.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.instance import Instance
from scipy.optimize import nnls

from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.resuming import AnswersFile
from lm_eval_hybrid.results import outputs


class Work(NamedTuple):
    """Documents begun, steps of the batch, and generated tokens of all answers together."""

    documents: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Rate:
    """Seconds per document, step, and token of a row.

    Attributes:
        requests: to servers per step, by remote model.
    """

    document: float
    step: float
    token: float
    requests: Mapping[str, float]

    def seconds(self, work: Work) -> float:
        return self.document * work.documents + self.step * work.steps + self.token * work.tokens


@dataclass(frozen=True)
class Measured:
    """Measurements of arms.

    Attributes:
        lengths: tokens of answers by arm and task, longest prompts first.
        rates: by arm.
        origin: a description of what was measured.
    """

    lengths: Mapping[tuple[str, str], tuple[int, ...]]
    rates: Mapping[str, Rate]
    origin: str


@dataclass(frozen=True)
class TaskTokens:
    """Tokens that an arm generates for a task.

    Attributes:
        lengths: of each answer, longest prompts first.
        origin: `measured: ...`, `assumed: ...`, or `at most: ...`.
    """

    task: str
    lengths: tuple[int, ...]
    origin: str

    @property
    def total(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class ArmEstimate:
    """One arm over all tasks, which it answers together.

    Attributes:
        seconds: of generation; None if unknown.
        requests: to servers, by model; None if unknown, empty if all models are local.
        origin: of seconds and requests.
    """

    arm: str
    tasks: tuple[TaskTokens, ...]
    seconds: float | None
    requests: Mapping[str, int] | None
    origin: str

    @property
    def tokens(self) -> int:
        return sum(task.total for task in self.tasks)


def progress(lengths: Sequence[int], batch_size: int) -> Iterator[Work]:
    """Yield the work done at the end of each answer; answers begin in this order, `batch_size` at once."""
    ends = list(lengths[:batch_size])
    heapq.heapify(ends)
    waiting = iter(lengths[batch_size:])
    begun, steps, tokens = len(ends), 0, 0
    while ends:
        rows, end = len(ends), heapq.heappop(ends)
        tokens += rows * (end - steps)
        steps = end
        yield Work(begun, steps, tokens)
        for length in islice(waiting, 1):
            begun += 1
            heapq.heappush(ends, steps + length)


def total_work(lengths: Sequence[int], batch_size: int) -> Work:
    """The work at the end of the last answer."""
    return max(progress(lengths, batch_size), default=Work(0, 0, 0))


def fitted_rate(lengths: Sequence[int], batch_size: int, ends: Sequence[float], requests: Mapping[str, int]) -> Rate:
    """The rate at which answers of these lengths, begun in this order, ended `ends` seconds after the start."""
    work = list(progress(lengths, batch_size))
    document, step, token = map(float, nnls(np.array(work, dtype=float), np.array(sorted(ends)))[0])
    # Scaled, so that the parts add up to the whole time.
    scale = max(ends) / (Rate(document, step, token, {}).seconds(work[-1]) or 1.0)
    per_step = {name: count / max(1, work[-1].steps) for name, count in requests.items()}
    return Rate(document * scale, step * scale, token * scale, per_step)


def estimate(
    arms: Sequence[str], tasks: Sequence[TaskRequests], batch_size: int, measured: Measured | None, remote: bool = False
) -> tuple[ArmEstimate, ...]:
    """Estimate every arm; without measurements tokens are an upper bound and time is unknown.

    Args:
        remote: whether a model is on a server.
    """
    known = measured or Measured({}, {}, "")
    return tuple(_arm(arm, [task for task in tasks if task.limit], batch_size, known, remote) for arm in arms)


def longest(estimates: Sequence[ArmEstimate], tasks: Sequence[TaskRequests]) -> int:
    """Most tokens of a text, prompt and answer."""
    answers: dict[str, int] = {}
    for tokens in (tokens for arm in estimates for tokens in arm.tasks):
        answers[tokens.task] = max(answers.get(tokens.task, 0), *tokens.lengths, 0)
    return max((max(task.prompts, default=0) + answers.get(task.task, 0) for task in tasks), default=0)


def _arm(arm: str, tasks: Sequence[TaskRequests], batch_size: int, measured: Measured, remote: bool) -> ArmEstimate:
    tokens = tuple(_tokens(arm, task, measured) for task in tasks)
    rate = measured.rates.get(arm)
    if rate is None:
        return ArmEstimate(arm, tokens, None, None if remote else {}, "unknown")
    # The harness sends all tasks at once, longest prompts first.
    prompts = [prompt for task in tasks for prompt in task.prompts]
    lengths = [length for own in tokens for length in own.lengths]
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i])
    work = total_work([lengths[i] for i in order], batch_size)
    requests = {name: round(per_step * work.steps) for name, per_step in rate.requests.items()}
    origin = f"measured: {measured.origin}"
    return ArmEstimate(arm, tokens, rate.seconds(work), requests or (None if remote else {}), origin)


def _tokens(arm: str, task: TaskRequests, measured: Measured) -> TaskTokens:
    others = {name: lengths for (of, name), lengths in sorted(measured.lengths.items()) if of == arm}
    if not others:
        return TaskTokens(task.task, (task.limit,) * len(task.prompts), "at most: max_gen_toks")
    if task.task in others:
        known, origin = list(others[task.task]), f"measured: {measured.origin}"
    else:
        known, origin = [n for lengths in others.values() for n in lengths], f"assumed: as in {', '.join(others)}"
    # Spread over the task's requests, in order.
    count = len(task.prompts)
    lengths = tuple(min(known[i * len(known) // count], task.limit) for i in range(count))
    return TaskTokens(task.task, lengths, origin)


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
