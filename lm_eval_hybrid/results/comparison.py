"""All figures of a comparison of arms, task by task: what gap.json holds and tables and pages show.

They are a function of the runs and the bootstrap's seed alone. gap.json holds these classes' fields, so renaming one
changes its schema.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from lm_eval_hybrid.results.runs import WITHOUT, ArmRun, Runs, TokenCounts
from lm_eval_hybrid.results.statistics import (
    Accuracy,
    Gap,
    McNemar,
    PairedDifference,
    accuracy,
    difference,
    gap,
    holm,
    mcnemar,
)


@dataclass(frozen=True)
class Share:
    """A share of the generated tokens: of all documents' tokens together, and the mean of the documents' shares."""

    tokens: float
    documents: float


@dataclass(frozen=True)
class Length:
    """Generated tokens per answer."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True)
class Contrast:
    """The hybrid against another arm, on the same documents.

    Attributes:
        difference: of accuracy, hybrid minus the arm.
        test: McNemar's; `better` counts documents that only the hybrid gets right.
        holm: its p-value, adjusted for all arms of the task that the hybrid is tested against.
    """

    difference: PairedDifference
    test: McNemar
    holm: float


@dataclass(frozen=True)
class ArmFigures:
    """One arm on one task. What was not measured is None.

    Attributes:
        gap: None for base and thinking, and if one of them was not run.
        against: the hybrid against this arm; None for the hybrid itself, and if it was not run.
        steered, changed: of the generated tokens.
        truncated, unfinished: documents whose answer was cut at the token limit, and whose answer ends in a thought.
    """

    arm: str
    accuracy: Accuracy
    gap: Gap | None
    against: Contrast | None
    steered: Share | None
    changed: Share | None
    length: Length | None
    truncated: int | None
    unfinished: int | None


@dataclass(frozen=True)
class BehaviorUse:
    """How much the hybrid uses one behavior on one task.

    Attributes:
        behavior: its key; `bias` stands for tokens that were steered without one.
        tokens, share: tokens steered with it, and their share of the steered tokens.
        documents: whose answers have such a token.
        left_out: the hybrid against itself without this behavior; None if that was not run.
    """

    behavior: str
    tokens: int
    share: float
    documents: int
    left_out: Contrast | None


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
    base, thinking, hybrid = arms.get("base"), arms.get("thinking"), arms.get("hybrid")
    counts = [document.counts for document in run.documents if document.counts is not None]
    counted = len(counts) == len(run.documents)
    unfinished = [document.unfinished for document in run.documents]
    return ArmFigures(
        arm=run.arm,
        accuracy=accuracy(run.scores),
        gap=(
            None
            if base is None or thinking is None or run in (base, thinking)
            else gap(base.scores, run.scores, thinking.scores, seed)
        ),
        against=None if hybrid is None or hybrid is run else _contrast(hybrid, run, seed),
        steered=_share(run.steered_fraction, [(c.steered, c.tokens) for c in counts]) if counted else None,
        changed=_share(run.changed_fraction, [(c.changed, c.tokens) for c in counts]) if counted else None,
        length=_length(counts) if counted else None,
        truncated=sum(c.finish == "length" for c in counts) if counted else None,
        unfinished=None if None in unfinished else sum(map(bool, unfinished)),
    )


def _contrast(hybrid: ArmRun, run: ArmRun, seed: int) -> Contrast:
    test = mcnemar(hybrid.scores, run.scores)
    return Contrast(difference(hybrid.scores, run.scores, seed), test, test.p)


def _adjusted(figures: Sequence[ArmFigures]) -> tuple[ArmFigures, ...]:
    """Adjust the p-values of each family of tests; arms with a behavior left out are a family of their own."""
    ps: dict[str, float] = {}
    for left_out in (False, True):
        family = {f.arm: f.against.test.p for f in figures if f.against and f.arm.startswith(WITHOUT) is left_out}
        ps |= zip(family, holm(list(family.values())), strict=True)
    return tuple(replace(f, against=replace(f.against, holm=ps[f.arm])) if f.against else f for f in figures)


def _share(pooled: float | None, parts: Iterable[tuple[int | None, int]]) -> Share | None:
    if pooled is None:
        return None
    return Share(pooled, mean((part or 0) / tokens if tokens else 0.0 for part, tokens in parts))


def _length(counts: Sequence[TokenCounts]) -> Length:
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
