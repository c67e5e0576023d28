"""The comparison of arms as one table, with what it rests on below it."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.report import figures, provenance
from lm_eval_hybrid.report.figures import ABSENT
from lm_eval_hybrid.results.comparison import ArmFigures, TaskComparison
from lm_eval_hybrid.results.runs import WITHOUT, Runs

_NUMBERS = ("steered", "changed", "tokens/s", "docs")


def render(comparison: Sequence[TaskComparison], runs: Runs, seed: int) -> Group:
    """The table of all tasks and arms, differences from the hybrid, and the footer; at most 100 columns wide.

    Args:
        comparison: what `compare` found in `runs` with that seed of the bootstrap.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column("accuracy [95%]", justify="right", overflow="fold")
    # As wide as a number with its interval; the reasons why there is none wrap.
    table.add_column("gap recovered [95%]", justify="right", overflow="fold", max_width=24)
    for name in _NUMBERS:
        table.add_column(name, justify="right", overflow="fold")
    for task in comparison:
        arms = runs.arms(task.task)
        table.add_row(Text(task.task, style="bold"))
        for arm in filter(_is_shown, task.arms):
            speed = arms[arm.arm].tokens_per_second
            cells = (
                f"  {arm.arm}",
                figures.accuracy(arm.accuracy),
                figures.gap(arm, task.missing),
                # Not `figures.share`: these are known of runs without token records, too.
                _percent(arms[arm.arm].steered_fraction),
                _percent(arms[arm.arm].changed_fraction),
                ABSENT if speed is None else figures.count(speed),
                f"{task.documents}",
            )
            table.add_row(*map(Text, cells))
        table.add_section()
    parts = [part for task in comparison for part in (*_differences(task), *_left_out(task))]
    return Group(table, *parts, *_footer(runs, seed))


def _is_shown(arm: ArmFigures) -> bool:
    """Whether it has a row: what leaving a behavior out costs is told apart."""
    return not arm.arm.startswith(WITHOUT)


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{fraction:.1%}"


def _differences(task: TaskComparison) -> Iterable[RenderableType]:
    """Hybrid minus every other arm."""
    items = [
        Text(f"{arm.arm} {figures.difference(arm.against.difference)} p {figures.p_value(arm.against.holm)}")
        for arm in filter(_is_shown, task.arms)
        if arm.against is not None
    ]
    if items:
        yield Text(f"{task.task}: hybrid minus each arm, in points of accuracy [95%], McNemar's p (Holm)", style="bold")
        yield Columns(items, padding=(0, 3))
        yield Text()


def _left_out(task: TaskComparison) -> Iterable[RenderableType]:
    """Hybrid minus itself without each behavior."""
    items = [
        Text(
            f"{use.behavior} ({use.share:.0%}) {figures.difference(use.left_out.difference)} "
            f"p {figures.p_value(use.left_out.holm)}"
        )
        for use in task.behaviors
        if use.left_out is not None
    ]
    if items:
        title = f"{task.task}: hybrid minus itself without a behavior (its share of the steered tokens), likewise"
        yield Text(title, style="bold")
        yield Columns(items, padding=(0, 3))
        yield Text()


def _footer(runs: Runs, seed: int) -> list[Text]:
    lines = [
        "intervals: 95%; Wilson for accuracy, paired bootstrap over documents for the rest",
        "gap recovered: (arm - base) / (thinking - base), signed; steered, changed: of generated tokens",
        *(f"{name}: {value}" for name, value in provenance.facts(runs, seed)),
    ]
    return [Text(line, style="dim") for line in lines]
