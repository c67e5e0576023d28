"""Charts of a comparison, for pages and papers: gaps recovered, accuracy by tokens steered, behaviors used."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from markupsafe import Markup

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.common.text import clip, writable
from lm_eval_hybrid.report import cells, charts
from lm_eval_hybrid.report.charts import CIRCLE, DIAMOND, SQUARE, Axis, Plane, line, mark, tag, text
from lm_eval_hybrid.results.comparison import ArmFigures, TaskComparison
from lm_eval_hybrid.results.runs import WITHOUT

_WIDEST = (-150.0, 250.0)  # of a gap's axis: with few documents, intervals can be many gaps wide


def gap_axis(arms: Iterable[ArmFigures]) -> Axis:
    """The axis of all arms' gaps, in percent, with ticks at 0 and 100."""
    gaps = [arm.gap for arm in arms if arm.gap is not None]
    ends = [100 * end for gap in gaps for end in (gap.recovered, gap.low, gap.high) if end is not None]
    low, high = max(min([0.0, *ends]), _WIDEST[0]), min(max([100.0, *ends]), _WIDEST[1])
    return Axis("gap recovered [95%]: 0% is the base, 100% the thinking model", charts.ticks(low, high), "%")


def gap_row(arm: ArmFigures, axis: Axis) -> Markup:
    """One arm's gap with its interval."""
    ends = (None, None, None) if arm.gap is None else (arm.gap.recovered, arm.gap.low, arm.gap.high)
    return charts.interval(axis, ends, kind(arm), CIRCLE if arm.arm == "hybrid" else DIAMOND)


def kind(arm: ArmFigures) -> str:
    """The class of an arm's marks: `hybrid`, `without` a behavior, `harm` where it is below the base, or `control`."""
    if arm.arm == "hybrid" or arm.arm.startswith(WITHOUT):
        return arm.arm.split()[0]
    return "harm" if arm.gap is not None and arm.gap.high is not None and arm.gap.high < 0 else "control"


def accuracy_chart(arms: Sequence[ArmFigures]) -> Markup | None:
    """Accuracy by the share of tokens steered, with a line for the thinking model; None where no share is known."""
    shown = [(arm, 100 * arm.steered.tokens) for arm in arms if arm.steered is not None and arm.arm != "thinking"]
    if not shown:
        return None
    shown.sort(key=lambda pair: (not pair[0].arm.startswith(WITHOUT), pair[0].arm == "hybrid"))  # hybrid on top
    ends = [100 * end for arm in arms for end in (arm.accuracy.low, arm.accuracy.high)]
    x, y = Axis.over("tokens steered", [0.0, *(s for _, s in shown)], "%", 4), Axis.over("accuracy [95%]", ends, "%")
    plane = Plane(x, y, 520, 340, right=130)
    parts, edge, named = plane.frame(), plane.at(x.ticks[-1], 0)[0], []
    for arm in arms:
        if arm.arm == "thinking":
            at = plane.at(0, 100 * arm.accuracy.value)[1]
            parts.append(line(58, at, edge, at, "thinking-line"))
            named.append((at, edge, "thinking model"))
    for arm, steered in shown:
        right = arm.accuracy
        (a, b), (_, low), (_, high) = (plane.at(steered, 100 * end) for end in (right.value, right.low, right.high))
        hint = f"{arm.arm}: accuracy {cells.accuracy(right)}, {steered:.1f}% of the tokens steered"
        shape = {"hybrid": CIRCLE, "base": SQUARE}.get(arm.arm, DIAMOND)
        whisker = line(a, low, a, high, f"whisker thin {kind(arm)}")
        parts.append(tag("g", tag("title", hint), whisker, mark(shape, a, b, kind(arm), 1.7)))
        if not arm.arm.startswith(WITHOUT):  # these are many and close together: only the hints have their names
            named.append((b, a + 6, clip(arm.arm, 18)))
    named.sort()
    for (b, a, name), at in zip(named, spread([b for b, _, _ in named], 14, plane.height - 40), strict=True):
        leader = tag("path", d=f"M{a:.1f} {b:.1f}L{edge:.1f} {b:.1f}L{edge + 10:.1f} {at:.1f}", class_="leader")
        parts += [leader, text(name, edge + 13, at + 4, "name")]
    return charts.svg(plane.width, plane.height, "Accuracy by the share of tokens steered", *parts)


def spread(places: Sequence[float], gap: float, end: float) -> list[float]:
    """Ascending places, moved so that they are `gap` apart and none is beyond `end`."""
    apart = accumulate(places, lambda last, place: max(place, last + gap))
    return [min(place, end - gap * (len(places) - 1 - i)) for i, place in enumerate(apart)]


def write_plots(comparison: Sequence[TaskComparison], folder: Path) -> list[Path]:
    """Write each task's charts as <chart>-<task>.png and .svg, and return their paths."""
    from vl_convert import svg_to_png

    plain = [re.sub(r"[^A-Za-z0-9_-]+", "-", task.task)[:80] for task in comparison]
    files: dict[Path, bytes] = {}
    for i, (task, name) in enumerate(zip(comparison, plain, strict=True), start=1):
        for chart, title, picture in _paper_charts(task):
            path = folder / f"{chart}-{name}{f'-{i}' if plain.count(name) > 1 else ''}.svg"
            content = writable(charts.paper(clip(title, 70), picture))
            files |= {path.with_suffix(".png"): svg_to_png(content, ppi=200), path: content.encode()}
    for path, data in files.items():
        write_file(path, data)
    return list(files)


def _paper_charts(task: TaskComparison) -> Iterator[tuple[str, str, Markup]]:
    """(name, title, picture) of each chart for which something was measured."""
    title, uses = f"{task.task}, {task.documents:,} documents", task.behaviors
    gaps = [(arm, arm.gap) for arm in task.arms if arm.gap is not None]
    if any(gap.recovered is not None for _, gap in gaps):
        axis = gap_axis(task.arms)
        rows = [(arm.arm, gap_row(arm, axis), cells.recovered(gap)) for arm, gap in gaps]
        yield "gap", title, charts.row_chart(axis, rows)
    if (picture := accuracy_chart(task.arms)) is not None:
        yield "accuracy", title, picture
    if uses:
        lost = {use: f"; {cells.difference(use.left_out.difference)}" for use in uses if use.left_out}
        words = "; then points of accuracy lost without the behavior [95%]" if lost else ""
        axis = Axis.over(f"share of steered tokens{words}", [0.0, *(100 * use.share for use in uses)], "%")
        bars = [charts.bar(axis, 100 * use.share, "c0") for use in uses]
        rows = [(u.behavior, row, f"{u.share:.1%}{lost.get(u, '')}") for u, row in zip(uses, bars, strict=True)]
        yield "behaviors", f"{task.task}: behaviors used", charts.row_chart(axis, rows)
