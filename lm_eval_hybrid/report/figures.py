"""Figures of a comparison in words: the cells that tables in the terminal, on the page and in papers share."""

from lm_eval_hybrid.results.comparison import ArmFigures, Share, TaskComparison
from lm_eval_hybrid.results.statistics import Accuracy, Gap, PairedDifference

ABSENT = "-"
COLUMNS = (
    "arm",
    "accuracy [95%]",
    "gap recovered [95%]",
    "steered",
    "changed",
    "mean length",
    "truncated",
    "unfinished",
    "hybrid minus arm [95%]",
    "p (Holm)",
)


def rows(task: TaskComparison) -> list[tuple[str, ...]]:
    """A row an arm, a cell a column of `COLUMNS`."""
    return [_row(figures, task.missing) for figures in task.arms]


def _row(figures: ArmFigures, missing: tuple[str, ...]) -> tuple[str, ...]:
    against = figures.against
    return (
        figures.arm,
        accuracy(figures.accuracy),
        gap(figures, missing),
        share(figures.steered),
        share(figures.changed),
        ABSENT if figures.length is None else count(figures.length.mean),
        ABSENT if figures.truncated is None else f"{figures.truncated:,}",
        ABSENT if figures.unfinished is None else f"{figures.unfinished:,}",
        ABSENT if against is None else difference(against.difference),
        ABSENT if against is None else p_value(against.holm),
    )


def accuracy(found: Accuracy) -> str:
    """`95.5% [91.7, 97.6]`."""
    return f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def gap(figures: ArmFigures, missing: tuple[str, ...]) -> str:
    """`+96.0% [+92.6, +98.7]`, or in words why there is none; the two ends of the gap have none."""
    if figures.arm in ("base", "thinking"):
        return ABSENT
    if figures.gap is None:
        return f"undefined: no run of {' and '.join(missing)}"
    return recovered(figures.gap)


def recovered(found: Gap) -> str:
    """`+96.0% [+92.6, +98.7]`, or in words why there is none."""
    if found.recovered is None:
        return f"undefined: {found.reason}"
    if found.low is None or found.high is None:
        return f"{found.recovered:+.1%} {found.reason}"
    return f"{found.recovered:+.1%} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def difference(found: PairedDifference) -> str:
    """In points of accuracy: `+12.0 [+4.5, +19.5]`."""
    return f"{_points(found.value)} [{_points(found.low)}, {_points(found.high)}]"


def p_value(p: float) -> str:
    """With 3 decimals, or `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(found: Share | None) -> str:
    """Of the tokens: `6.3%`."""
    return ABSENT if found is None else f"{found.tokens:.1%}"


def count(value: float) -> str:
    """A number of tokens, or tokens a second, with about 3 digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # not -0.0
