"""What an experiment takes: tokens, seconds and requests of every arm, each with where the figure comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_hybrid.experiment.estimate import rates
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.rates import Measured

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Tokens:
    """What an arm generates for a task.

    Attributes:
        lengths: of each answer, those of the longest prompts first.
        origin: `measured: ...`, or `at most: ...` where every answer is taken for as long as it may be.
    """

    task: str
    lengths: tuple[int, ...]
    origin: str

    @property
    def total(self) -> int:
        """Tokens of all answers."""
        return sum(self.lengths)


@dataclass(frozen=True)
class ArmEstimate:
    """One arm over all tasks, which it answers together.

    Attributes:
        seconds: of generation; None where nothing is known.
        requests: to servers, by model; None where nothing is known, empty where all models are here.
        origin: of seconds and requests.
    """

    arm: str
    tasks: tuple[Tokens, ...]
    seconds: float | None
    requests: dict[str, int] | None
    origin: str

    @property
    def tokens(self) -> int:
        """Of all tasks."""
        return sum(task.total for task in self.tasks)


def estimate(
    arms: Sequence[str], tasks: Sequence[TaskRequests], slots: int, measured: Measured, remote: bool = False
) -> tuple[ArmEstimate, ...]:
    """Every arm's.

    Args:
        slots: answers at once.
        remote: whether a model is on a server.
    """
    return tuple(_arm(arm, tasks, slots, measured, remote) for arm in arms)


def longest(estimates: Sequence[ArmEstimate], tasks: Sequence[TaskRequests]) -> int:
    """Tokens that a text has at most, prompt and answer."""
    answers: dict[str, int] = {}
    for tokens in (tokens for arm in estimates for tokens in arm.tasks):
        answers[tokens.task] = max(answers.get(tokens.task, 0), *tokens.lengths, 0)
    return max((max(task.prompts, default=0) + answers.get(task.task, 0) for task in tasks), default=0)


def _arm(arm: str, tasks: Sequence[TaskRequests], slots: int, measured: Measured, remote: bool) -> ArmEstimate:
    generating = [task for task in tasks if task.limit]
    tokens = tuple(_tokens(arm, task, measured) for task in generating)
    # The harness asks for all tasks at once, and the longest prompts come first.
    begun = sorted(
        (
            (-prompt, length)
            for task, own in zip(generating, tokens, strict=True)
            for prompt, length in zip(task.prompts, own.lengths, strict=True)
        ),
        key=lambda pair: pair[0],
    )
    rate = measured.rates.get(arm)
    if rate is None:
        return ArmEstimate(arm, tokens, None, None if remote else {}, UNKNOWN)
    work = rates.work([length for _, length in begun], slots)
    requests: dict[str, int] | None = {name: round(each * work.steps) for name, each in rate.requests.items()}
    origin = f"measured: {measured.origin}"
    seconds = rate.seconds(work)
    if rate.slots != slots:
        # What a step costs depends on its rows: of another batch size only tokens per second are taken over.
        then = rates.work([length for _, length in begun], rate.slots)
        seconds = rate.seconds(then)
        origin += f", {rate.slots} at once"
    return ArmEstimate(arm, tokens, seconds, requests or (None if remote else {}), origin)


def _tokens(arm: str, task: TaskRequests, measured: Measured) -> Tokens:
    known = measured.lengths.get((arm, task.task))
    if known:
        return Tokens(task.task, _spread(known, len(task.prompts)), f"measured: {measured.origin}")
    others = [(name, counts) for (of, name), counts in sorted(measured.lengths.items()) if of == arm]
    if others:
        names = ", ".join(name for name, _ in others)
        lengths = _spread([count for _, counts in others for count in counts], len(task.prompts))
        return Tokens(task.task, tuple(min(length, task.limit) for length in lengths), f"assumed: as in {names}")
    return Tokens(task.task, (task.limit,) * len(task.prompts), "at most: max_gen_toks")


def _spread(known: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` lengths that are distributed, from first to last, as the known ones are."""
    return tuple(known[i * len(known) // count] for i in range(count))
