"""Charts of arms: the gap that each recovers, and accuracy by the share of tokens that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lm_eval_hybrid.report import figures
from lm_eval_hybrid.report.charts import Axis, outline, svg, tag, ticks
from lm_eval_hybrid.results.comparison import ArmFigures
from lm_eval_hybrid.results.runs import WITHOUT

_WIDEST = (-1.5, 2.5)  # of a gap's axis; few documents give intervals of many gaps
_CIRCLE, _DIAMOND, _SQUARE = 0, 3, 2
Box = tuple[float, float, float, float]  # left, top, right and bottom
_LETTER, _LINE = 6.6, 14.0  # width and height of a label's letter
# Where a label may stand from its point: right, left, above, below, and then further away with a line to it.
_PLACES = (
    *((9, 4, "start"), (-9, 4, "end"), (0, -12, "middle"), (0, 20, "middle")),
    *((sign * dx, dy, anchor) for dy in (18, -12, 32, -26, 46, -40) for sign, anchor in ((1, "start"), (-1, "end"))
      for dx in (12, 26)),
)  # fmt: skip


def gap_axis(arms: Iterable[ArmFigures]) -> Axis:
    """The axis that all the arms' gaps are on, with 0 and 1 on it."""
    found = [arm.gap for arm in arms if arm.gap is not None]
    ends = [v for gap in found for v in (gap.recovered, gap.low, gap.high) if v is not None]
    low, high = max(min([0.0, *ends]), _WIDEST[0]), min(max([1.0, *ends]), _WIDEST[1])
    return Axis("gap recovered", ticks(low, high))


def gap_row(arm: ArmFigures, axis: Axis) -> Markup:
    """One arm's gap and its interval, as wide as there is room: places along the axis are shares of the width."""
    height = 32
    parts = [_part(axis, axis.marks[0], 0.0, "harm-ground"), _part(axis, 1.0, axis.marks[-1], "beyond-ground")]
    for mark in axis.marks:
        parts.append(_upright(axis, mark, height, "axis" if mark in (0, 1) else "grid"))
    gap = arm.gap
    if gap is not None and gap.recovered is not None:
        class_ = kind(arm)
        if gap.low is not None and gap.high is not None:
            ends = {"x1": _along(axis, gap.low), "x2": _along(axis, gap.high)}
            parts.append(tag("line", **ends, y1=height // 2, y2=height // 2, class_=f"whisker {class_}"))
        shape = tag("path", d=outline(_CIRCLE if arm.arm == "hybrid" else _DIAMOND, 0, 0), class_=f"mark {class_}")
        parts.append(tag("svg", shape, x=_along(axis, gap.recovered), y=height // 2, overflow="visible"))
    return tag("svg", *parts, height=height, class_="gap", aria_hidden="true")


def gap_scale(axis: Axis) -> Markup:
    """The axis that stands below the rows."""
    parts = []
    crowded = len(axis.marks) > 6
    for mark in axis.marks[axis.marks.index(0) % 2 :: 2] if crowded else axis.marks:
        anchor = "start" if mark == axis.marks[0] else "end" if mark == axis.marks[-1] else "middle"
        shown = f"{100 * mark:g}%".replace("-", "\N{MINUS SIGN}")
        parts.append(tag("text", shown, x=_along(axis, mark), y=14, class_=f"tick {anchor}"))
    return tag("svg", *parts, height=20, class_="gap", aria_hidden="true")


def kind(arm: ArmFigures) -> str:
    """The class of an arm's marks: `hybrid`, `without` a behavior, `harm` where it is below the base, or `control`."""
    if arm.arm == "hybrid":
        return "hybrid"
    if arm.arm.startswith(WITHOUT):
        return "without"
    harms = arm.gap is not None and arm.gap.high is not None and arm.gap.high < 0
    return "harm" if harms else "control"


def _along(axis: Axis, value: float) -> str:
    return f"{min(max(axis.place(value, 100.0), 0.0), 100.0):.2f}%"


def _upright(axis: Axis, value: float, height: int, class_: str) -> Markup:
    return tag("line", x1=_along(axis, value), x2=_along(axis, value), y1=0, y2=height, class_=class_)


def _part(axis: Axis, low: float, high: float, class_: str) -> Markup | None:
    if high <= low:
        return None
    width = f"{axis.place(high, 100.0) - axis.place(low, 100.0):.2f}%"
    return tag("rect", x=_along(axis, low), width=width, height="100%", class_=class_)


@dataclass(frozen=True)
class Label:
    """Where a label stands: relative to its point, and which of its ends (`start`, `middle`, `end`)."""

    dx: float
    dy: float
    anchor: str

    @property
    def far(self) -> bool:
        """So that a line must tell what it belongs to."""
        return abs(self.dy) > 20 or (abs(self.dx) > 9 and abs(self.dy) > 4)


def place_labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], room: Box, full: Sequence[Box] = ()
) -> list[Label | None]:
    """Places for names beside their points (in pixels, y downwards) that cover neither points nor one another.

    Args:
        names: an empty one needs no place (None).
        room: where names may be; one for which there is none has no place (None).
        full: where they may not.
    """
    taken = [*full, *((x - 5, y - 5, x + 5, y + 5) for x, y in points)]
    found: list[Label | None] = []
    for (x, y), name in zip(points, names, strict=True):
        for label in (Label(*place) for place in _PLACES if name):
            box = _box(x, y, label, len(name) * _LETTER)
            inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(label)
                break
        else:
            found.append(None)
    return found


def _box(x: float, y: float, label: Label, width: float) -> Box:
    left = x + label.dx - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    bottom = y + label.dy + 3
    return left, bottom - _LINE, left + width, bottom


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def steered_points(arms: Iterable[ArmFigures]) -> list[tuple[ArmFigures, float]]:
    """Arms but `thinking`, which writes every token itself, with the share of tokens that they steer.

    In the order in which to draw them: the hybrid above all, those that leave a behavior out of it below.
    """
    shown = [(arm, arm.steered.tokens) for arm in arms if arm.steered is not None and arm.arm != "thinking"]
    return sorted(shown, key=lambda pair: (not pair[0].arm.startswith(WITHOUT), pair[0].arm == "hybrid"))


def label_of(arm: ArmFigures) -> str:
    """What stands beside its point: nothing of the many that leave a behavior out, which are near one another."""
    return "" if arm.arm.startswith(WITHOUT) else arm.arm


def accuracy_by_steered(arms: Sequence[ArmFigures]) -> Markup:
    """Accuracy, with its interval, by the share of tokens steered; the thinking model's is a line."""
    width, height, left, top, right, bottom = 480, 340, 52, 26, 14, 42
    across, down = width - left - right, height - top - bottom
    shown = steered_points(arms)
    thinking = next((arm for arm in arms if arm.arm == "thinking"), None)
    ends = [v for arm in arms for v in (arm.accuracy.low, arm.accuracy.high)]
    x = Axis.over("tokens steered", [0.0, *(steered for _, steered in shown)], 4)
    y = Axis.over("accuracy", ends, 5)
    parts: list[object] = []
    for mark in y.marks:
        at = top + down - y.place(mark, down)
        parts.append(tag("line", x1=left, x2=left + across, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", f"{100 * mark:g}%", x=left - 7, y=at + 4, class_="tick end"))
    for mark in x.marks:
        at = left + x.place(mark, across)
        parts.append(tag("text", f"{100 * mark:g}%", x=at, y=top + down + 18, class_="tick middle"))
    parts.append(tag("line", x1=left, x2=left + across, y1=top + down, y2=top + down, class_="axis"))
    parts.append(tag("text", x.label, x=left + across / 2, y=height - 6, class_="label middle"))
    places = [
        (left + x.place(steered, across), top + down - y.place(arm.accuracy.value, down)) for arm, steered in shown
    ]
    words: list[Box] = []
    if thinking is not None:
        at = top + down - y.place(thinking.accuracy.value, down)
        parts.append(tag("line", x1=left, x2=left + across, y1=at, y2=at, class_="thinking-line"))
        parts.append(tag("text", "thinking model", x=left + across, y=at + 15, class_="tick end"))
        words.append((left + across - 14 * _LETTER, at, left + across, at + 20))
    labels = place_labels(places, [label_of(arm) for arm, _ in shown], (left, 0, width, top + down), words)
    for (arm, steered), (a, b), label in zip(shown, places, labels, strict=True):
        parts.append(_point(arm, steered, a, b, label, [top + down - y.place(v, down) for v in _ends(arm)]))
    return svg(width, height, "Accuracy by the share of tokens steered, a point an arm", *parts, class_="natural")


def _ends(arm: ArmFigures) -> tuple[float, float]:
    return arm.accuracy.low, arm.accuracy.high


def _point(
    arm: ArmFigures, steered: float, x: float, y: float, label: Label | None, whisker: Sequence[float]
) -> Markup:
    shape = _CIRCLE if arm.arm == "hybrid" else _SQUARE if arm.arm == "base" else _DIAMOND
    hint = f"{arm.arm}: {figures.accuracy(arm.accuracy)} right, {steered:.1%} of the tokens steered"
    parts: list[object] = [
        tag("title", hint),
        tag("line", x1=x, x2=x, y1=whisker[0], y2=whisker[1], class_=f"whisker thin {kind(arm)}"),
        tag("path", d=outline(shape, x, y), class_=f"mark {kind(arm)}"),
    ]
    if label is not None:
        if label.far:
            parts.append(tag("line", x1=x, y1=y, x2=x + label.dx, y2=y + label.dy - 4, class_="leader"))
        parts.append(tag("text", arm.arm, x=x + label.dx, y=y + label.dy, class_=f"name {label.anchor}"))
    return tag("g", *parts)
