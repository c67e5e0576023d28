"""The sentences of a notebook: eight behaviors, each right in itself whenever it is written.

Every sentence is a function of the problem and of the notebook so far, also where it comes at a useless moment: a
computation with nothing planned adds 0, a conversion with no rule recalled multiplies by 1. So a model can have every
skill without knowing when to use it, which is what the base model of the embedded pair is.
"""

import random
from collections.abc import Iterator
from typing import Literal, get_args

from lm_eval_hybrid.embedded.problems import LARGEST, Event, Problem

Behavior = Literal["restate", "recall", "convert", "plan", "compute", "check", "go-back", "conclude"]
BEHAVIORS: tuple[Behavior, ...] = get_args(Behavior)
OPENINGS: dict[Behavior, str] = {
    "restate": " We",
    "recall": " Recall",
    "convert": " Converting",
    "plan": " Next",
    "compute": " So",
    "check": " Check",
    "go-back": " Going",
    "conclude": " Finally",
}
# How often an ill-timed notebook writes each: the same at every moment, whatever the notebook holds already.
ILL_TIMED: dict[Behavior, float] = {
    "restate": 0.13,
    "recall": 0.11,
    "convert": 0.11,
    "plan": 0.16,
    "compute": 0.16,
    "check": 0.13,
    "go-back": 0.1,
    "conclude": 0.1,
}


class Notebook:
    """A notebook on one problem: what it holds so far decides what the next sentence of a behavior says."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.start = 0
        self.rule = 1
        self.count = 0
        self.pending: Event | None = None
        self.planned = 0
        self.restated = self.recalled = self.converted = False
        self.checked = True
        self.over = False

    def needed(self) -> Behavior:
        """The behavior that brings this notebook nearer to the answer: the right timing."""
        if not self.restated:
            return "restate"
        if self.problem.unit and not self.converted:
            return "convert" if self.recalled else "recall"
        if self.pending:
            return "compute"
        if self.problem.limit is not None and not self.checked:
            return "check"
        if self.over:
            return "go-back"
        return "plan" if self.planned < len(self.problem.events) else "conclude"

    def allows(self, behavior: Behavior) -> bool:
        """Whether the sentence keeps the count within 0..99, the numbers that the pair knows."""
        if behavior == "compute" and self.pending:
            return 0 <= self.count + self.pending.change <= LARGEST
        return behavior != "convert" or self.start * self.rule <= LARGEST

    def write(self, behavior: Behavior) -> str:
        """Appends the sentence of `behavior` (its text begins with a space) and returns it."""
        return OPENINGS[behavior] + getattr(self, "_" + behavior.replace("-", "_"))()

    def _restate(self) -> str:
        self.start, self.restated, self.converted = self.problem.start, True, False
        self._set(self.start)
        return f" start with {self.start} {self.problem.counted}."

    def _recall(self) -> str:
        self.rule, self.recalled = self.problem.size, True
        if self.problem.unit is None:
            return f" that the {self.problem.item} count as they are."
        return f" that one {self.problem.unit} is {self.rule} {self.problem.item}."

    def _convert(self) -> str:
        self.converted = self.restated and (self.recalled or self.problem.unit is None)
        self._set(self.start * self.rule)
        return f" the start gives {self.start} * {self.rule} = {self.count}."

    def _plan(self) -> str:
        if self.planned == len(self.problem.events):
            self.pending = None
            return " there is no change left."
        self.pending = self.problem.events[self.planned]
        self.planned += 1
        return f" the change of {self.pending.name} is {_signed(self.pending.change)}."

    def _compute(self) -> str:
        change = self.pending.change if self.pending else 0
        before, self.pending = self.count, None
        self._set(before + change)
        self.checked = False
        return f" the count goes to {before} {_signed(change)} = {self.count}."

    def _check(self) -> str:
        self.checked = True
        if self.problem.limit is None:
            return f" the limit: {self.count} is fine."
        self.over = self.count > self.problem.limit
        return f" the limit: {self.count} is {'over' if self.over else 'within'} {self.problem.limit}."

    def _go_back(self) -> str:
        if self.over and self.problem.limit is not None:
            self._set(self.problem.limit)
            return f" back, we keep only {self.count}."
        return f" back, we keep all {self.count}."

    def _conclude(self) -> str:
        answer = f"#### {self.count}" if self.problem.family == "gsm8k" else f"\\boxed{{{self.count}}}"
        return f" we have it: {answer}"

    def _set(self, count: int) -> None:
        self.count, self.checked, self.over = count, True, False


def _signed(change: int) -> str:
    return f"{'-' if change < 0 else '+'} {abs(change)}"


def answer_at_once(problem: Problem) -> str:
    """The answer without a notebook."""
    return f" #### {problem.answer}" if problem.family == "gsm8k" else f" \\boxed{{{problem.answer}}}"


def well_timed(problem: Problem) -> Iterator[tuple[Behavior, str]]:
    """The sentences that solve the problem, each when it is needed."""
    notebook = Notebook(problem)
    behavior: Behavior = "restate"
    while behavior != "conclude":
        behavior = notebook.needed()
        yield behavior, notebook.write(behavior)


def ill_timed(problem: Problem, rng: random.Random, longest: int = 16) -> Iterator[tuple[Behavior, str]]:
    """Sentences right in themselves at moments that tell nothing: drawn with the same weights throughout."""
    notebook = Notebook(problem)
    for left in reversed(range(longest)):
        behavior = rng.choices(BEHAVIORS, list(ILL_TIMED.values()))[0] if left else "conclude"
        if notebook.allows(behavior):
            yield behavior, notebook.write(behavior)
            if behavior == "conclude":
                return


def recovering(problem: Problem, rng: random.Random, slip: float) -> Iterator[tuple[Behavior, str, bool]]:
    """A well-timed notebook with useless sentences slipped in; yields behavior, sentence, whether it was needed.

    A slip leaves the problem solvable: it neither concludes nor loses a planned change.
    """
    notebook = Notebook(problem)
    behavior: Behavior = "restate"
    while behavior != "conclude":
        behavior = notebook.needed()
        if rng.random() < slip:
            harmless = [b for b in ("recall", "compute", "check", "go-back") if b != behavior and notebook.allows(b)]
            slipped = rng.choice(harmless)
            yield slipped, notebook.write(slipped), False
            behavior = notebook.needed()
        yield behavior, notebook.write(behavior), True
