"""Charts as SVG text, inline in pages and as files for papers: a plane with two axes, or rows of a table.

Pages must be readable without a network or scripts, follow the reader's light or dark theme and show hints on hover,
and their content security policy forbids style attributes. So colours are classes that charts.css styles from the
theme's variables, and hints are `<title>` elements. `tag` makes every element and escapes whatever is not `Markup`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from markupsafe import Markup, escape

from lm_eval_hybrid.common.errors import clip, writable
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import cells, charts
from lm_eval_hybrid.report.cells import signed
from lm_eval_hybrid.results.comparison import ArmFigures, TaskComparison
from lm_eval_hybrid.results.runs import WITHOUT

COLOURS = 8
# Outlines of equal area around the origin: circle, triangle, square, diamond, cross, triangle down, star, plus.
_OUTLINES = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m0-3.8l3.5 6.2h-7z",
    "m-2.7-2.7h5.4v5.4h-5.4z",
    "m0-4l4 4l-4 4l-4-4z",
    "m-3.5-2.1l1.4-1.4l2.1 2.1l2.1-2.1l1.4 1.4l-2.1 2.1l2.1 2.1l-1.4 1.4l-2.1-2.1l-2.1 2.1l-1.4-1.4l2.1-2.1z",
    "m0 3.8l3.5-6.2h-7z",
    "m0-4.4l1.2 3.2h3.2l-2.6 2l1 3.2l-2.8-2l-2.8 2l1-3.2l-2.6-2h3.2z",
    "m-1-3.8h2v2.8h2.8v2h-2.8v2.8h-2v-2.8h-2.8v-2h2.8z",
)
CIRCLE, SQUARE, DIAMOND = 0, 2, 3


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Children and attributes that are None are left out; `_` in a name is `-`, and at its end nothing."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"')
    inner = "".join(escape(child) for child in children if child is not None)
    return Markup(f"<{' '.join(parts)}>{inner}</{name}>")


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def text(words: str, x: float | str, y: float, class_: str) -> Markup:
    """A line of text; its classes give size, colour and anchor."""
    return tag("text", words, x=x, y=y, class_=class_)


def line(x1: float | str, y1: float | str, x2: float | str, y2: float | str, class_: str) -> Markup:
    """A straight line between points in pixels or percent."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg(width: int, height: int, label: str, *children: object, class_: str = "natural") -> Markup:
    """A picture of that size in pixels; screen readers read `label`."""
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return tag("svg", *children, **size, role="img", aria_label=label, class_=class_)


def look(index: int) -> str:
    """The classes of a category's colour. Together with `outline` they tell 128 categories apart."""
    return f"c{index % COLOURS}{' hollow' if index // (COLOURS * len(_OUTLINES)) % 2 else ''}"


def outline(index: int, x: float, y: float) -> str:
    """Path data of a category's marker: `M`, its centre, its shape."""
    return f"M{_short(float(x))} {_short(float(y))}{_OUTLINES[(index + index // COLOURS) % len(_OUTLINES)]}"


def mark(shape: int, x: float, y: float, class_: str, size: float = 1, hint: str | None = None) -> Markup:
    """A marker, and a text to show on hover."""
    place = f"translate({_short(float(x))} {_short(float(y))}) scale({size:g})"
    return tag("path", hint and tag("title", hint), d=outline(shape, 0, 0), class_=f"mark {class_}", transform=place)


def chip(index: int) -> Markup:
    """A category's marker by itself, for legends and tables."""
    picture = mark(index, 7, 7, look(index), 1.3)
    return tag("svg", picture, viewBox="0 0 14 14", width=14, height=14, class_="chip", aria_hidden="true")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, from `low` or below to `high` or above."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * multiple for multiple in (1, 2, 5, 10) if rough <= power * multiple * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear axis from the first of its ticks to the last."""

    label: str
    ticks: Sequence[float]
    unit: str = ""

    @classmethod
    def over(cls, label: str, values: Iterable[float], unit: str = "", count: int = 5) -> "Axis":
        """An axis that spans the values; there must be one."""
        values = list(values)
        return cls(label, ticks(min(values), max(values), count), unit)

    def at(self, value: float) -> float:
        """The place of a value: 0 at the first tick, 1 at the last."""
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def along(self, value: float) -> str:
        """The same in percent; values beyond the axis are at its ends."""
        return f"{100 * min(max(self.at(value), 0.0), 1.0):.2f}%"

    def name(self, tick: float) -> str:
        """A tick's label."""
        number = f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:g}"
        return f"{number}{self.unit}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Plane:
    """A picture of that size in pixels with two axes."""

    x: Axis
    y: Axis
    width: int
    height: int
    right: int = 20  # margin

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return 58 + self.x.at(x) * (self.width - 58 - self.right), self.height - 40 - self.y.at(y) * (self.height - 66)

    def frame(self) -> list[Markup]:
        """Axes, grid, ticks and labels."""
        (left, floor), (right, top) = (self.at(self.x.ticks[i], self.y.ticks[i]) for i in (0, -1))
        turn = f"translate(12 {(top + floor) / 2:g}) rotate(-90)"
        parts = [tag("text", self.y.label, transform=turn, class_="label middle")]
        parts.append(text(self.x.label, (left + right) / 2, self.height - 6, "label middle"))
        for tick in self.y.ticks:
            _, at = self.at(0, tick)
            parts += [line(left, at, right, at, "grid"), text(self.y.name(tick), left - 6, at + 3.5, "tick end")]
        for tick in self.x.ticks:
            at, _ = self.at(tick, 0)
            parts += [line(at, floor, at, floor + 4, "axis"), text(self.x.name(tick), at, floor + 16, "tick middle")]
        return [*parts, line(left, floor, right, floor, "axis")]


@dataclass(frozen=True)
class Line:
    """A line of a chart: `look` is the index of its colour and marker, `ringed` that of a point to ring.

    `hints` has the text to show on hover over each point; a line without hints has no markers.
    """

    points: Sequence[tuple[float, float]]
    look: int
    dashed: bool = False
    hints: Sequence[str | None] = ()
    ringed: int | None = None


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, width: int = 330, height: int = 220) -> Markup:
    """Lines over two axes."""
    plane = Plane(x, y, width, height)
    parts = [text(title, 58, 14, "title"), *plane.frame()]
    for each in lines:
        points = [plane.at(*point) for point in each.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(tag("path", d=path, class_=f"line c{each.look % COLOURS}{' dashed' if each.dashed else ''}"))
        if each.ringed is not None:
            a, b = points[each.ringed]
            parts.append(tag("circle", cx=a, cy=b, r=7.5, class_="ring"))
        hints = each.hints or ([None] if len(points) == 1 else [])  # a line of one point could not be seen
        parts += [mark(each.look, *at, look(each.look), 1, hint) for at, hint in zip(points, hints, strict=False)]
    return svg(width, height, f"{title}: {y.label} by {x.label}", *parts)


def interval(axis: Axis, gap: Sequence[float | None], class_: str, shape: int = CIRCLE) -> Markup:
    """A row: a gap and the low and high end of its interval, each 1 for all of it, on an axis in percent."""
    value, low, high = (None if end is None else 100 * end for end in gap)
    parts = []
    for start, end, ground in ((axis.ticks[0], 0.0, "harm-ground"), (100.0, axis.ticks[-1], "beyond-ground")):
        width = f"{100 * max(axis.at(end) - axis.at(start), 0):.2f}%"
        parts.append(tag("rect", x=axis.along(start), width=width, height="100%", class_=ground))
    if low is not None and high is not None:
        parts.append(line(axis.along(low), "50%", axis.along(high), "50%", f"whisker {class_}"))
    if value is not None:
        parts.append(tag("svg", mark(shape, 0, 0, class_, 1.7), x=axis.along(value), y="50%", overflow="visible"))
    return _row(axis, (0, 100), parts)


def bar(axis: Axis, value: float | None, class_: str) -> Markup:
    """A row: a bar from 0 to the value."""
    if value is None:
        return _row(axis, (0,), [])
    box = {"x": axis.along(min(value, 0)), "width": f"{100 * abs(axis.at(value) - axis.at(0)):.2f}%"}
    return _row(axis, (0,), [tag("rect", **box, y="15%", height="70%", class_=f"bar {class_}")])


def _row(axis: Axis, strong: Sequence[float], parts: Sequence[Markup]) -> Markup:
    grid = [line(axis.along(t), 0, axis.along(t), "100%", "axis" if t in strong else "grid") for t in axis.ticks]
    return tag("svg", *grid, *parts, class_="row", overflow="visible", aria_hidden="true")


def row_axis(axis: Axis) -> Markup:
    """The axis below rows."""
    anchors = {axis.ticks[0]: "start", axis.ticks[-1]: "end"}
    names = [text(axis.name(t), axis.along(t), 14, f"tick {anchors.get(t, 'middle')}") for t in axis.ticks]
    return tag("svg", *names, class_="row", overflow="visible", aria_hidden="true")


def row_chart(axis: Axis, rows: Sequence[tuple[str, Markup, str]]) -> Markup:
    """Rows in one picture: (name, row, text beside it)."""
    rows = [(clip(name, 30), row, signed(words)) for name, row, words in rows]
    left, right = (20 + 7 * max(len(row[i]) for row in rows) for i in (0, 2))  # a letter is about 7 pixels wide
    bottom, width = 24 * len(rows), max(left + 300 + right, 7 * len(axis.label))
    parts = [text(axis.label, width / 2, bottom + 36, "label middle")]
    for y, (name, row, words) in zip(range(0, bottom, 24), rows, strict=True):
        parts += [text(name, left - 10, y + 16, "name end"), text(words, left + 312, y + 16, "tick")]
        parts.append(tag("svg", row, x=left, y=y, width=300, height=24, overflow="visible"))
    parts.append(tag("svg", row_axis(axis), x=left, y=bottom, width=300, height=20, overflow="visible"))
    return svg(width, bottom + 44, axis.label, *parts)


def paper(title: str, chart: Markup) -> str:
    """A chart as a file of its own, with a title: on white, in the light theme's colours."""
    page, css = ((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.css", "charts.css"))
    light = dict(re.findall(r"--([\w-]+): (#\w+)", page.split("}")[0]))
    style = Markup(re.sub(r"var\(--([\w-]+)\)", lambda name: light[name[1]], css))
    width, height = (int(size) for size in re.findall(r' (?:width|height)="(\d+)"', chart)[:2])
    parts = tag("style", style), tag("rect", width="100%", height="100%", fill="#ffffff"), text(title, 12, 17, "title")
    size = {"width": width, "height": height + 26, "viewBox": f"0 0 {width} {height + 26}"}
    root = {"xmlns": "http://www.w3.org/2000/svg", "font_family": "Helvetica, Arial, sans-serif"}
    return tag("svg", *parts, tag("g", chart, transform="translate(0 26)"), **size, **root)


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
