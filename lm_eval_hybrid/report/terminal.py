"""Tables in the terminal: the comparison of arms, rescored recordings, a judge's agreement; helpers for others."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.common.errors import printable
from lm_eval_hybrid.judging.verdicts import Agreement
from lm_eval_hybrid.report import cells
from lm_eval_hybrid.report.cells import ABSENT
from lm_eval_hybrid.results.comparison import ArmFigures, TaskComparison
from lm_eval_hybrid.results.recordings import Recording, Score
from lm_eval_hybrid.results.runs import WITHOUT, Runs
from lm_eval_hybrid.results.statistics import accuracy


def plain(value: object, style: str = "") -> Text:
    """Text of models or strangers, without effect on the terminal: no markup, no control characters."""
    return Text(printable(str(value)), style=style)


def make_table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    """A table with a rule below its head: columns of texts, then of numbers, aligned to the right. Long cells wrap."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (*texts, *numbers):
        table.add_column(plain(name), justify="right" if name in numbers else "left", overflow="fold")
    return table


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `5 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def comparison_table(comparison: Sequence[TaskComparison], runs: Runs, seed: int) -> Group:
    """All tasks and arms, differences from the hybrid, and the provenance; at most 100 columns wide.

    Args:
        comparison: what `compare` returned for `runs` with that seed of the bootstrap.
    """
    numbers = ("accuracy [95%]", "gap recovered [95%]", "steered", "changed", "tokens/s", "docs")
    table = make_table("arm", numbers=numbers)
    table.columns[2].max_width = 24  # a number with its interval; a reason why there is none wraps
    for task in comparison:
        table.add_row(plain(task.task, style="bold"))
        for arm in filter(_has_row, task.arms):
            table.add_row(*map(plain, _row(arm, task, runs)))
        table.add_section()
    parts = [part for task in comparison for part in (*_differences(task), *_left_out(task))]
    lines = [
        "intervals: 95%; Wilson for accuracy, paired bootstrap over documents for the others",
        "gap recovered: (arm - base) / (thinking - base), signed; steered, changed: of generated tokens",
        *(f"{name}: {value}" for name, value in cells.provenance(runs, seed)),
    ]
    return Group(table, *parts, *(plain(line, style="dim") for line in lines))


def _has_row(arm: ArmFigures) -> bool:
    """Arms that leave a behavior out are listed below the table."""
    return not arm.arm.startswith(WITHOUT)


def _row(arm: ArmFigures, task: TaskComparison, runs: Runs) -> tuple[str, ...]:
    run = runs.arms(task.task)[arm.arm]
    return (
        f"  {arm.arm}",
        cells.accuracy(arm.accuracy),
        cells.gap(arm, task.missing),
        # The run's own shares are known without token records, too.
        cells.percent(run.steered_fraction),
        cells.percent(run.changed_fraction),
        ABSENT if run.tokens_per_second is None else cells.count(run.tokens_per_second),
        f"{task.documents}",
    )


def _differences(task: TaskComparison) -> Iterable[RenderableType]:
    """The hybrid minus each other arm."""
    items = [
        f"{arm.arm} {cells.difference(arm.against.difference)} p {cells.p_value(arm.against.holm)}"
        for arm in filter(_has_row, task.arms)
        if arm.against is not None
    ]
    return _list(f"{task.task}: hybrid minus each arm, in points of accuracy [95%], McNemar's p (Holm)", items)


def _left_out(task: TaskComparison) -> Iterable[RenderableType]:
    """The hybrid minus the hybrid without each behavior."""
    items = [
        f"{use.behavior} ({use.share:.0%}) {cells.difference(use.left_out.difference)} "
        f"p {cells.p_value(use.left_out.holm)}"
        for use in task.behaviors
        if use.left_out is not None
    ]
    title = f"{task.task}: hybrid minus hybrid without a behavior (its share of steered tokens), same units"
    return _list(title, items)


def _list(title: str, items: Sequence[str]) -> Iterable[RenderableType]:
    return (plain(title, style="bold"), Columns(map(plain, items), padding=(0, 3)), Text()) if items else ()


def recording_table(recording: Recording, scores: Sequence[Score]) -> Table:
    """One row for each model: accuracy by our rule, the recorded one, answers that are unfinished or missing."""
    numbers = ("answers", "accuracy [95%]", "recorded", "difference", "unfinished", "no answer")
    table = make_table("model", numbers=numbers)
    table.title, table.title_justify = plain(recording.path.name, style="bold"), "left"
    for model in recording.models:
        own = [score for score in scores if score.model == model]
        right = accuracy([float(score.right) for score in own])
        judged = recording.judged.get(model)
        unfinished = sum(score.unfinished for score in own)
        missing = sum(score.answer is None for score in own) - unfinished
        change = ABSENT if judged is None else cells.points(right.value - judged)
        row = (model, len(own), cells.accuracy(right), cells.percent(judged), change, unfinished, missing)
        table.add_row(*map(plain, row))
    return table


def agreement_table(agreements: Mapping[str, Agreement], judge: str) -> Table:
    """One row for each model, by its name: how the scoring rule (first) agrees with a judge (second)."""
    numbers = ("rule right", "judge right", "agree", "kappa", "only rule", "only judge", "unclear")
    table = make_table("model", numbers=numbers)
    caption = f"judge: {judge}; shares of the answers that it judged; Cohen's kappa"
    table.caption, table.caption_justify = Text(caption, style="dim"), "left"
    for model, of in agreements.items():
        shares = map(cells.percent, (of.first_right, of.second_right, of.share))
        counts = (f"{number:,}" for number in (of.only_first, of.only_second, of.unclear))
        table.add_row(*map(plain, (model, *shares, ABSENT if of.kappa is None else f"{of.kappa:.3f}", *counts)))
    return table
