"""Every figure of a comparison of arms, task by task: what gap.json holds and tables and pages show.

All of it is a function of the runs and of the bootstrap's seed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from lm_eval_hybrid.results.runs import WITHOUT, ArmRun, Counts, Runs
from lm_eval_hybrid.results.statistics import (
    Accuracy,
    Difference,
    Gap,
    McNemar,
    accuracy,
    difference,
    gap,
    holm,
    mcnemar,
)


@dataclass(frozen=True)
class Share:
    """Share of the generated tokens: of all documents' together, and the mean of the documents' own."""

    tokens: float
    documents: float


@dataclass(frozen=True)
class Length:
    """Generated tokens of an answer."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True)
class Against:
    """The hybrid against an arm, on the same documents.

    Attributes:
        difference: of accuracy, hybrid minus the arm.
        test: McNemar's; `better` are the documents that only the hybrid gets right.
        holm: its p-value, adjusted for all arms of the task that the hybrid is tested against.
    """

    difference: Difference
    test: McNemar
    holm: float


@dataclass(frozen=True)
class ArmFigures:
    """One arm on one task. What was not measured is None.

    Attributes:
        gap: None for base and thinking, and where one of them was not run.
        against: the hybrid against this arm; None for the hybrid, and where it was not run.
        steered, changed: of the generated tokens.
        truncated, unfinished: documents whose answer the token limit cut, and whose answer ends within a thought.
    """

    arm: str
    accuracy: Accuracy
    gap: Gap | None
    against: Against | None
    steered: Share | None
    changed: Share | None
    length: Length | None
    truncated: int | None
    unfinished: int | None


@dataclass(frozen=True)
class BehaviorUse:
    """What the hybrid does with one behavior on one task.

    Attributes:
        behavior: its key; `bias` stands for tokens that were steered without one.
        tokens, share: steered with it, and their share of the steered tokens.
        documents: whose answers it has a token in.
        left_out: the hybrid against itself without this behavior; None where that was not run.
    """

    behavior: str
    tokens: int
    share: float
    documents: int
    left_out: Against | None


@dataclass(frozen=True)
class TaskComparison:
    """One task.

    Attributes:
        documents: how many; `digest` is of their contents and order, as the harness hashes them.
        behaviors: of arm hybrid, most used first.
        missing: arms without which there is no gap.
    """

    task: str
    documents: int
    digest: str
    arms: tuple[ArmFigures, ...]
    behaviors: tuple[BehaviorUse, ...]
    missing: tuple[str, ...]

    def arm(self, name: str) -> ArmFigures | None:
        """The figures of one arm, if it was run."""
        return next((figures for figures in self.arms if figures.arm == name), None)


def compare(runs: Runs, seed: int = 0) -> tuple[TaskComparison, ...]:
    """The figures of every task.

    Args:
        seed: of the bootstrap.

    Raises:
        HybridError: for a score that is neither 0 nor 1.
    """
    return tuple(_task(task, runs.arms(task), seed) for task in runs.tasks)


def _task(task: str, arms: dict[str, ArmRun], seed: int) -> TaskComparison:
    first = next(iter(arms.values()))
    hashes = json.dumps([document.doc_hash for document in first.documents])
    figures = _adjusted([_figures(run, arms, seed) for run in arms.values()])
    return TaskComparison(
        task=task,
        documents=len(first.documents),
        digest=hashlib.sha256(hashes.encode()).hexdigest(),
        arms=figures,
        behaviors=_behaviors(arms.get("hybrid"), figures),
        missing=tuple(arm for arm in ("base", "thinking") if arm not in arms),
    )


def _figures(run: ArmRun, arms: dict[str, ArmRun], seed: int) -> ArmFigures:
    ends, hybrid = [arms.get(arm) for arm in ("base", "thinking")], arms.get("hybrid")
    counts = [document.counts for document in run.documents if document.counts is not None]
    told = len(counts) == len(run.documents)
    unfinished = [document.unfinished for document in run.documents]
    return ArmFigures(
        arm=run.arm,
        accuracy=accuracy(run.scores),
        gap=None if None in ends or run in ends else gap(ends[0].scores, run.scores, ends[1].scores, seed),
        against=None if hybrid is None or hybrid is run else _against(hybrid, run, seed),
        steered=_share(run.steered_fraction, [(c.steered, c.tokens) for c in counts]) if told else None,
        changed=_share(run.changed_fraction, [(c.changed, c.tokens) for c in counts]) if told else None,
        length=_length(counts) if told else None,
        truncated=sum(c.finish == "length" for c in counts) if told else None,
        unfinished=None if None in unfinished else sum(map(bool, unfinished)),
    )


def _against(hybrid: ArmRun, run: ArmRun, seed: int) -> Against:
    test = mcnemar(hybrid.scores, run.scores)
    return Against(difference(hybrid.scores, run.scores, seed), test, test.p)


def _adjusted(figures: Sequence[ArmFigures]) -> tuple[ArmFigures, ...]:
    """The same, their tests adjusted for one another: those with a behavior left out are a family of their own."""
    tested = [f for f in figures if f.against is not None]
    ps: dict[str, float] = {}
    for left_out in (False, True):
        family = [f for f in tested if f.arm.startswith(WITHOUT) is left_out]
        ps |= zip((f.arm for f in family), holm([f.against.test.p for f in family]), strict=True)
    return tuple(
        replace(f, against=replace(f.against, holm=ps[f.arm])) if f.against is not None else f for f in figures
    )


def _share(pooled: float | None, parts: Iterable[tuple[int | None, int]]) -> Share | None:
    if pooled is None:
        return None
    return Share(pooled, mean((part or 0) / tokens if tokens else 0.0 for part, tokens in parts))


def _length(counts: Sequence[Counts]) -> Length:
    tokens = [c.tokens for c in counts]
    return Length(mean(tokens), median(tokens), max(tokens))


def _behaviors(hybrid: ArmRun | None, figures: Sequence[ArmFigures]) -> tuple[BehaviorUse, ...]:
    if hybrid is None:
        return ()
    tokens: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for counts in (document.counts for document in hybrid.documents if document.counts is not None):
        used = Counter(counts.behaviors)
        used["bias"] += counts.steered - used.total()
        tokens += used
        documents.update((+used).keys())
    keys = {f.arm.removeprefix(WITHOUT): f for f in figures if f.arm.startswith(WITHOUT) and "," not in f.arm}
    names = sorted(tokens.keys() | keys.keys(), key=lambda name: (-tokens[name], name))
    return tuple(
        BehaviorUse(
            behavior=name,
            tokens=tokens[name],
            share=tokens[name] / tokens.total() if tokens else 0.0,
            documents=documents[name],
            left_out=keys[name].against if name in keys else None,
        )
        for name in names
    )
