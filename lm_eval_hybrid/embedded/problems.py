"""Two families of seeded arithmetic problems, in the formats of GSM8K and of MATH500.

A problem is a count in a story: a start (perhaps in units that must be converted), two to four changes, perhaps a limit
that cuts off what exceeds it. The limit makes the order of events matter, so that the sum alone does not give the
answer. All numbers stay within 0..99 and all changes within 1..9.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Family = Literal["gsm8k", "math500"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MOVES = ("A", "B", "C", "D", "E", "F", "G")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida")
UNITS = {"gsm8k": ("crate", "box", "bag", "tray"), "math500": ("block", "step", "row", "loop")}
UNIT_PLURALS = {"box": "boxes"}
ITEMS = {
    "gsm8k": ("apples", "pens", "cups", "eggs", "books", "coins"),
    "math500": ("points", "marks", "beads", "dots"),
}
LARGEST = 99


@dataclass(frozen=True)
class Event:
    """One change of the count; `name` says when or which (`Monday`, `move A`)."""

    name: str
    change: int


@dataclass(frozen=True)
class EmbeddedProblem:
    """One problem of a family.

    Attributes:
        start: the first count, in units if there is a `unit`, else in items.
        unit: what the start is counted in, or None for items.
        size: items in a unit; 1 without a unit.
        events: the changes, in order.
        limit: the largest count that is kept, or None.
    """

    family: Family
    name: str
    item: str
    start: int
    unit: str | None
    size: int
    events: tuple[Event, ...]
    limit: int | None

    @property
    def counted(self) -> str:
        """What the start is counted in: `crates`, `apples`."""
        return self.item if self.unit is None else UNIT_PLURALS.get(self.unit, self.unit + "s")

    @property
    def answer(self) -> int:
        """The final count: start times size, then each change, cut at the limit after each."""
        count = self.start * self.size
        for event in self.events:
            count = self._cut(count + event.change)
        return count

    @property
    def margin(self) -> int:
        """The smallest distance of a count from the limit, before the cut; `LARGEST` without a limit."""
        margin, count = LARGEST, self.start * self.size
        for event in self.events:
            count += event.change
            if self.limit is not None:
                margin = min(margin, abs(count - self.limit))
            count = self._cut(count)
        return margin

    def _cut(self, count: int) -> int:
        return count if self.limit is None else min(count, self.limit)

    @property
    def text(self) -> str:
        """The problem in words."""
        return " ".join(_as_story(self) if self.family == "gsm8k" else _as_counter(self))

    def document(self, solution: str) -> dict[str, str]:
        """The problem as a row of its benchmark; `solution` is a worked notebook that ends in the answer."""
        if self.family == "gsm8k":
            return {"question": self.text, "answer": solution}
        return {"problem": self.text, "solution": solution, "answer": str(self.answer)}


def _as_story(problem: EmbeddedProblem) -> Iterator[str]:
    yield f"{problem.name} has {problem.start} {problem.counted}."
    if problem.unit:
        yield f"A {problem.unit} holds {problem.size} {problem.item}."
    for event in problem.events:
        yield f"On {event.name} {abs(event.change)} {'come in' if event.change > 0 else 'go out'}."
    if problem.limit is not None:
        yield f"There is room for {problem.limit}."
    yield f"How many {problem.item} are left?"


def _as_counter(problem: EmbeddedProblem) -> Iterator[str]:
    yield f"A counter is at {problem.start} {problem.counted}."
    if problem.unit:
        yield f"A {problem.unit} is {problem.size} {problem.item}."
    for event in problem.events:
        yield f"On {event.name} it {'adds' if event.change > 0 else 'takes'} {abs(event.change)}."
    if problem.limit is not None:
        yield f"The bound is {problem.limit}."
    yield f"How many {problem.item} does it show?"


def draw(family: Family, rng: random.Random) -> EmbeddedProblem:
    """Draw one problem whose counts stay within 0..99 at every step, with or without the limit."""
    while True:
        problem = _draw_any(family, rng)
        counts = [problem.start * problem.size]
        for event in problem.events:
            counts.append(counts[-1] + event.change)
        if min(counts) >= 0 and max(counts) <= LARGEST and problem.answer >= 0:
            return problem


def _draw_any(family: Family, rng: random.Random) -> EmbeddedProblem:
    in_units = rng.random() < 0.6
    start, size = (rng.randint(2, 9), rng.randint(2, 9)) if in_units else (rng.randint(10, 80), 1)
    first = rng.randrange(4)
    names = DAYS if family == "gsm8k" else tuple(f"move {letter}" for letter in MOVES)
    events = tuple(
        Event(names[first + i], rng.choice((1, 1, -1)) * rng.randint(1, 9)) for i in range(rng.randint(2, 4))
    )
    limit = min(start * size + rng.randint(0, 8), LARGEST) if rng.random() < 0.6 else None
    return EmbeddedProblem(
        family=family,
        name=rng.choice(NAMES),
        item=rng.choice(ITEMS[family]),
        start=start,
        unit=rng.choice(UNITS[family]) if in_units else None,
        size=size,
        events=events,
        limit=limit,
    )


def held_out(family: Family, count: int, seed: int) -> list[EmbeddedProblem]:
    """`count` distinct problems of a family, the same for the same seed.

    Their margins are above 1: telling 44 from 45 takes arithmetic, and these problems test timing.
    """
    rng = random.Random(f"{family}:{seed}")
    problems: dict[str, EmbeddedProblem] = {}
    while len(problems) < count:
        problem = draw(family, rng)
        if problem.margin > 1:
            problems.setdefault(problem.text, problem)
    return list(problems.values())
