"""Notebooks: worked solutions made of sentences of eight behaviors, each sentence correct whenever it is written.

A sentence follows from the problem and the notebook so far, even at a useless moment: a computation with nothing
planned adds 0, a conversion with no rule recalled multiplies by 1. So a model can have every skill without knowing when
to use it, as the base model of the embedded pair.
"""

import random
from collections.abc import Iterator
from typing import Literal, get_args

from lm_eval_hybrid.embedded.problems import LARGEST, EmbeddedProblem, Event

NotebookBehavior = Literal["restate", "recall", "convert", "plan", "compute", "check", "go-back", "conclude"]
BEHAVIORS: tuple[NotebookBehavior, ...] = get_args(NotebookBehavior)
OPENINGS: dict[NotebookBehavior, str] = {
    "restate": " We",
    "recall": " Recall",
    "convert": " Converting",
    "plan": " Next",
    "compute": " So",
    "check": " Check",
    "go-back": " Going",
    "conclude": " Finally",
}
# After each sentence, an ill-timed notebook follows its habit, or what would make sense, or draws any behavior. The
# habit is the most frequent and seldom what is needed, so that the base, left alone or merely nudged, reasons badly.
HABIT: dict[NotebookBehavior, NotebookBehavior] = {
    "restate": "check",
    "recall": "plan",
    "convert": "check",
    "plan": "check",
    "compute": "recall",
    "check": "recall",
    "go-back": "recall",
}
SENSE: dict[NotebookBehavior, NotebookBehavior] = {
    "recall": "convert",
    "plan": "compute",
    "compute": "check",
    "check": "go-back",
}
HABIT_SHARE, SENSE_SHARE = 0.43, 0.42
ANYTHING: dict[NotebookBehavior, float] = {
    "restate": 0.2,
    "recall": 0.15,
    "convert": 0.05,
    "plan": 0.3,
    "compute": 0.05,
    "check": 0.1,
    "go-back": 0.05,
    "conclude": 0.1,
}


class Notebook:
    """A notebook on one problem; its state decides what the next sentence of a behavior says.

    Every sentence but the conclusion ends with the count. A rule, a plan or a failed check is used by the very next
    sentence only; so each sentence can be written from the one before it and the problem.
    """

    def __init__(self, problem: EmbeddedProblem) -> None:
        self.problem = problem
        self.count = 0
        self.last: NotebookBehavior | None = None
        self.plans = 0
        self.planned: Event | None = None
        self.restated = False
        self.converted = problem.unit is None
        self.settled = True

    @property
    def over(self) -> bool:
        """Whether the count is above the limit."""
        return self.problem.limit is not None and self.count > self.problem.limit

    def needed(self) -> NotebookBehavior:
        """The behavior that comes next in a well-timed notebook."""
        if not self.restated:
            return "restate"
        if not self.converted:
            return "convert" if self.last == "recall" else "recall"
        if self.problem.limit is not None and not self.settled:
            return "go-back" if self.last == "check" else "check"
        if self.planned:
            return "compute"
        return "plan" if self.plans < len(self.problem.events) else "conclude"

    def allows(self, behavior: NotebookBehavior) -> bool:
        """Whether the sentence keeps the count within 0..99, the numbers that the pair knows."""
        if behavior == "compute" and self.planned:
            return 0 <= self.count + self.planned.change <= LARGEST
        return behavior != "convert" or self.last != "recall" or self.count * self.problem.size <= LARGEST

    def write(self, behavior: NotebookBehavior) -> str:
        """Append the sentence of `behavior` and return its text, which begins with a space."""
        text = OPENINGS[behavior] + getattr(self, "_" + behavior.replace("-", "_"))()
        self.last = behavior
        if behavior != "plan":
            self.planned = None
        return text

    def _restate(self) -> str:
        self.count, self.restated, self.converted = self.problem.start, True, self.problem.unit is None
        self.settled = True
        return f" start with {self.problem.counted}: {self.count}."

    def _recall(self) -> str:
        if self.problem.unit is None:
            return f" that the {self.problem.item} count as they are, still {self.count}."
        return f" that one {self.problem.unit} is {self.problem.size} {self.problem.item}, still {self.count}."

    def _convert(self) -> str:
        before, rule = self.count, self.problem.size if self.last == "recall" else 1
        self.count *= rule
        self.converted |= self.restated and self.last == "recall"
        return f" the count gives {before} * {rule} = {self.count}."

    def _plan(self) -> str:
        if self.plans == len(self.problem.events):
            self.planned = None
            return f" there is no change left, still {self.count}."
        self.planned = self.problem.events[self.plans]
        self.plans += 1
        return f" the change of {self.planned.name} is {_signed(self.planned.change)} from {self.count}."

    def _compute(self) -> str:
        event, before = self.planned, self.count
        self.settled = False
        if event is None:
            return f" with nothing new the count goes {before} + 0 = {before}."
        self.count += event.change
        return f" with {event.name} the count goes {before} {_signed(event.change)} = {self.count}."

    def _check(self) -> str:
        self.settled = not self.over
        limit = "no limit" if self.problem.limit is None else self.problem.limit
        return f" {self.count} against {limit}: {'too much' if self.over else 'fine'}, still {self.count}."

    def _go_back(self) -> str:
        if not (self.over and self.last == "check"):
            return f" back nowhere, we keep {self.count}."
        self.count, self.settled = self.problem.limit or 0, True
        return f" back over it, we keep only {self.count}."

    def _conclude(self) -> str:
        answer = f"#### {self.count}" if self.problem.family == "gsm8k" else f"\\boxed{{{self.count}}}"
        return f" we have it: {answer}"


def _signed(change: int) -> str:
    return f"{'-' if change < 0 else '+'} {abs(change)}"


def answer_at_once(problem: EmbeddedProblem) -> str:
    """The answer without a notebook."""
    return f" #### {problem.answer}" if problem.family == "gsm8k" else f" \\boxed{{{problem.answer}}}"


def well_timed(problem: EmbeddedProblem) -> Iterator[tuple[NotebookBehavior, str]]:
    """The sentences that solve the problem, each when it is needed."""
    notebook = Notebook(problem)
    behavior: NotebookBehavior = "restate"
    while behavior != "conclude":
        behavior = notebook.needed()
        yield behavior, notebook.write(behavior)


def ill_timed(
    problem: EmbeddedProblem, rng: random.Random, longest: int = 26
) -> Iterator[tuple[NotebookBehavior, str]]:
    """Correct sentences at arbitrary moments: some repeated, needless or missing, and an early conclusion.

    The first count is arbitrary, like on a page torn from a notebook.
    """
    notebook = Notebook(problem)
    notebook.count = rng.randint(0, 9) if problem.unit and rng.random() < 0.5 else rng.randint(0, LARGEST)
    for left in reversed(range(longest)):
        behavior = _ill_timed_next(notebook.last, rng) if left else "conclude"
        if notebook.allows(behavior):
            yield behavior, notebook.write(behavior)
            if behavior == "conclude":
                return


def _ill_timed_next(last: NotebookBehavior | None, rng: random.Random) -> NotebookBehavior:
    chance = rng.random()
    if last is not None and chance < HABIT_SHARE:
        return HABIT[last]
    if last in SENSE and chance < HABIT_SHARE + SENSE_SHARE:
        return SENSE[last]
    return rng.choices(BEHAVIORS, list(ANYTHING.values()))[0]


_SLIPS: tuple[NotebookBehavior, ...] = ("recall", "compute", "check", "go-back")


def recovering(
    problem: EmbeddedProblem, rng: random.Random, slip: float
) -> Iterator[tuple[NotebookBehavior, str, bool]]:
    """A well-timed notebook with useless sentences slipped in: (behavior, sentence, whether it was needed).

    A slip leaves the problem solvable: it neither concludes, nor starts over, nor converts, nor loses a change.

    Args:
        slip: the chance of a slip before each needed sentence.
    """
    notebook = Notebook(problem)
    behavior: NotebookBehavior = "restate"
    while behavior != "conclude":
        behavior = notebook.needed()
        if notebook.restated and not notebook.planned and rng.random() < slip:
            slipped = rng.choice([other for other in _SLIPS if other != behavior])
            yield slipped, notebook.write(slipped), False
            behavior = notebook.needed()
        yield behavior, notebook.write(behavior), True
