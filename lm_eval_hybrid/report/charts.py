"""Charts as SVG text, drawn here so that a page needs no network, no library and, to be read, no script.

Colours are classes that the page's style sheet gives, one set for light and one for dark: `c0` to `c7` for categories,
`heat`, `above` and `below` for shades. There are no style attributes, so that the page's policy can forbid them.
Whatever is not `Markup` is escaped by `tag`, which makes every element; so other people's words stay words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 8
SHAPES = 8
_TICKS = 5
_LABEL = 34  # characters of a row's label
# Outlines of about the same area, relative to their middle: circle, triangle, square, diamond, cross, triangle down,
# star, plus.
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


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Underscores in attributes' names are hyphens, one at the end is left out; None leaves it out."""
    words = [
        f'{key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inner = "".join(escape(child) for child in children if child is not None)
    return Markup(f"<{' '.join([name, *words])}>{inner}</{name}>")


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def svg(width: float, height: float, label: str, *children: object, class_: str | None = None) -> Markup:
    """A picture of that size in pixels; `label` says what it shows to whoever cannot see it."""
    size = {"viewBox": f"0 0 {_plain(float(width))} {_plain(float(height))}", "width": width, "height": height}
    return tag("svg", *children, **size, role="img", aria_label=label, class_=class_)


def look(index: int) -> str:
    """Classes of a category's colour. With the shape of `outline` it differs from that of the first 128 others."""
    hollow = " hollow" if index // (COLOURS * SHAPES) % 2 else ""
    return f"c{index % COLOURS}{hollow}"


def outline(index: int, x: float, y: float) -> str:
    """Path data of a category's marker, which begins with `M` and the middle."""
    return f"M{_plain(float(x))} {_plain(float(y))}{_OUTLINES[(index + index // COLOURS) % SHAPES]}"


def chip(index: int) -> Markup:
    """A category's marker by itself, for legends and tables."""
    mark = tag(
        "path", d=outline(index, 7, 7), class_=f"mark {look(index)}", transform="translate(-2.1 -2.1) scale(1.3)"
    )
    return tag("svg", mark, viewBox="0 0 14 14", width=14, height=14, class_="chip", aria_hidden="true")


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About `count` round numbers that span from `low` or below to `high` or above."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * multiple for multiple in (1, 2, 5, 10) if rough <= power * multiple * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        look: index of its colour, and of the markers' shape.
        dashed: is drawn so.
        hints: what hovering over each point shows; a line without has no markers.
        ringed: index of a point to mark.
    """

    points: Sequence[tuple[float, float]]
    look: int
    dashed: bool = False
    hints: Sequence[str] = ()
    ringed: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis: its label, and the numbers that it shows, ascending."""

    label: str
    marks: Sequence[float]

    @classmethod
    def over(cls, label: str, values: Iterable[float], count: int = _TICKS) -> Axis:
        """An axis that spans the values; there must be one."""
        values = list(values)
        return cls(label, ticks(min(values), max(values), count))

    def place(self, value: float, length: float) -> float:
        """How far along an axis of that length a value is."""
        return (value - self.marks[0]) / (self.marks[-1] - self.marks[0]) * length


def panel(title: str, lines: Sequence[Line], x: Axis, y: Axis, width: int = 330, height: int = 220) -> Markup:
    """Lines over two axes."""
    left, top, right, bottom = 58, 26, 20, 40
    across, down = width - left - right, height - top - bottom
    parts: list[object] = [tag("text", title, x=left, y=14, class_="title")]
    for mark in y.marks:
        at = top + down - y.place(mark, down)
        parts.append(tag("line", x1=left, x2=left + across, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", number(mark), x=left - 6, y=at + 3.5, class_="tick end"))
    for mark in x.marks:
        at = left + x.place(mark, across)
        parts.append(tag("line", x1=at, x2=at, y1=top + down, y2=top + down + 4, class_="axis"))
        parts.append(tag("text", number(mark), x=at, y=top + down + 16, class_="tick middle"))
    parts.append(tag("line", x1=left, x2=left + across, y1=top + down, y2=top + down, class_="axis"))
    parts.append(tag("text", x.label, x=left + across / 2, y=height - 6, class_="label middle"))
    turned = f"translate(12 {top + down / 2:g}) rotate(-90)"
    parts.append(tag("text", y.label, transform=turned, class_="label middle"))
    for line in lines:
        places = [(left + x.place(a, across), top + down - y.place(b, down)) for a, b in line.points]
        parts += _line(line, places)
    return svg(width, height, f"{title}: {y.label} by {x.label}", *parts)


def _line(line: Line, places: Sequence[tuple[float, float]]) -> list[Markup]:
    drawn = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = [tag("path", d=drawn, class_=f"line c{line.look % COLOURS}{' dashed' if line.dashed else ''}")]
    if line.ringed is not None:
        a, b = places[line.ringed]
        parts.append(tag("circle", cx=a, cy=b, r=7.5, class_="ring"))
    if len(places) == 1 and not line.hints:
        parts.append(tag("path", d=outline(line.look, *places[0]), class_=f"mark {look(line.look)}"))
    for (a, b), hint in zip(places, line.hints, strict=False):
        parts.append(tag("path", tag("title", hint), d=outline(line.look, a, b), class_=f"mark {look(line.look)}"))
    return parts


def key(entries: Sequence[tuple[str, int, bool]]) -> Markup:
    """A legend of lines: names, looks, and whether they are dashed."""
    items = []
    for name, index, dashed in entries:
        line = tag("path", d="M1 7H27", class_=f"line c{index % COLOURS}{' dashed' if dashed else ''}")
        mark = None if dashed else tag("path", d=outline(index, 14, 7), class_=f"mark {look(index)}")
        items.append(
            tag("li", tag("svg", line, mark, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true"), name)
        )
    return tag("ul", *items, class_="key")


def scatter(points: Sequence[tuple[float, float, int]], label: str, size: tuple[int, int] = (1040, 700)) -> Markup:
    """Points (x, y, category) without axes: a path a category, the most numerous at the back.

    The k-th `M` of a path is the middle of the k-th point of its category.
    """
    width, height = size
    edge = 14
    spans = [(min(values), max(values)) for values in ([p[0] for p in points], [p[1] for p in points])]
    scale = min(
        (side - 2 * edge) / (high - low) if high > low else math.inf
        for side, (low, high) in zip(size, spans, strict=True)
    )
    scale = scale if math.isfinite(scale) else 0.0
    middle = [(low + high) / 2 for low, high in spans]
    paths: dict[int, list[str]] = {}
    for x, y, category in points:
        at = round(width / 2 + (x - middle[0]) * scale, 1), round(height / 2 - (y - middle[1]) * scale, 1)
        paths.setdefault(category, []).append(outline(category, *at))
    order = sorted(paths, key=lambda category: (-len(paths[category]), category))
    drawn = [tag("path", d="".join(paths[c]), class_=f"mark {look(c)}", data_b=c) for c in order]
    return svg(width, height, label, *drawn, tag("circle", r=8, cx=-20, cy=-20, class_="ring here"), class_="map")


@dataclass(frozen=True)
class Heat:
    """A matrix to shade.

    Attributes:
        shades: from -1 to 1; None for a cell without a value.
        shown: what stands in a cell, where there is room.
        hint: what hovering over the cell of a row and a column shows.
        looks: of each row and column, the category, or None.
    """

    shades: Sequence[Sequence[float | None]]
    shown: Sequence[Sequence[str]]
    hint: Callable[[int, int], str]
    rows: Sequence[str]
    columns: Sequence[str]
    looks: Sequence[int | None]
    x_label: str
    y_label: str


def heat_map(heat: Heat, label: str, signed: bool = False) -> Markup:
    """Cells shaded by value: of one hue, or, signed, of one for either side of 0."""
    count = len(heat.rows)
    cell = 46 if count <= 10 else 36 if count <= 17 else 22 if count <= 30 else 14
    roomy = cell >= 36
    left, top = _label_width(heat.rows), 44
    parts: list[object] = [
        tag("text", heat.x_label, x=left + count * cell / 2, y=12, class_="label middle"),
        tag("text", heat.y_label, x=left - 8, y=top - 8, class_="label end"),
    ]
    step = 1 if cell >= 18 else 2
    for i in range(0, count, step):
        parts.append(tag("text", heat.columns[i], x=left + (i + 0.5) * cell, y=top - 8, class_="tick middle"))
    for i, row in enumerate(heat.shades):
        y = top + i * cell
        cells: list[object] = [_row_label(heat.rows[i], heat.looks[i], left, y + cell / 2)]
        for j, shade in enumerate(row):
            hue = "below" if signed and (shade or 0) < 0 else "above" if signed else "heat"
            strength = round(min(1.0, abs(shade or 0.0)), 3)
            spot = {"x": left + j * cell, "y": y, "width": cell - 1, "height": cell - 1}
            cells.append(tag("rect", tag("title", heat.hint(i, j)), **spot, class_=hue, fill_opacity=f"{strength:g}"))
            if roomy:
                # Where ink cannot be read any more; on a dark page, that is earlier.
                class_ = f"cell middle{' strong' if strength > 0.85 else ' deep' if strength > 0.62 else ''}"
                cells.append(
                    tag("text", heat.shown[i][j], x=left + (j + 0.5) * cell, y=y + cell / 2 + 4, class_=class_)
                )
        parts.append(tag("g", *cells, data_b=heat.looks[i]))
    frame = {"x": left - 0.5, "y": top - 0.5, "width": count * cell, "height": count * cell}
    parts.append(tag("rect", **frame, class_="frame"))
    return svg(left + count * cell + 8, top + count * cell + 8, label, *parts, class_="natural")


def _row_label(name: str, category: int | None, left: float, y: float) -> Markup:
    """A row's name, and where it is a category its number and marker, that end at `left`."""
    if category is None:
        return tag("text", clip(name, _LABEL), x=left - 8, y=y + 4, class_="tick end")
    return tag(
        "g",
        tag("text", clip(name, _LABEL), x=left - 48, y=y + 4, class_="tick end"),
        tag("text", category + 1, x=left - 24, y=y + 4, class_="rank end"),
        tag("path", d=outline(category, left - 13, y), class_=f"mark {look(category)}"),
    )


def _label_width(labels: Sequence[str]) -> int:
    longest = max(len(clip(label, _LABEL)) for label in labels)
    return max(110, 60 + 7 * longest)  # of 12 pixels; a letter is about 7 wide


def bars(rows: Sequence[tuple[str, float | None, str]], axis: Axis, label: str) -> Markup:
    """Horizontal bars from 0, one a category: a name, its value, and what stands beside the bar."""
    left, right, height, top = _label_width([name for name, _, _ in rows]), 160, 24, 8
    width = 1000
    across = width - left - right
    bottom = top + len(rows) * height
    parts: list[object] = []
    for mark in axis.marks:
        at = left + axis.place(mark, across)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="axis" if mark == 0 else "grid"))
        parts.append(tag("text", number(mark), x=at, y=bottom + 16, class_="tick middle"))
    parts.append(tag("text", axis.label, x=left + across / 2, y=bottom + 36, class_="label middle"))
    zero = left + axis.place(0, across)
    for i, (name, value, beside) in enumerate(rows):
        y = top + i * height
        group: list[object] = [_row_label(name, i, left, y + height / 2)]
        end = zero if value is None else left + axis.place(value, across)
        if value is not None:
            spot = {"x": min(zero, end), "y": y + 5, "width": abs(end - zero), "height": height - 10}
            group.append(tag("rect", **spot, class_=f"c{i % COLOURS}"))
        group.append(tag("text", beside, x=max(zero, end) + 8, y=y + height / 2 + 4, class_="tick"))
        parts.append(tag("g", *group, data_b=i))
    return svg(width, bottom + 44, label, *parts, class_="natural")


def share(value: float, index: int = 0) -> Markup:
    """A bar from 0 to 1, for a table's cell."""
    width, height = 110, 10
    ground = tag("rect", width=width, height=height, rx=2, class_="ground")
    bar = tag("rect", width=width * value, height=height, rx=2, class_=f"c{index % COLOURS}")
    return tag("svg", ground, bar, viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true")


def interval(value: float, low: float | None, high: float | None, axis: Axis) -> Markup:
    """A value and its interval on an axis with lines at 0 and 1, for a table's cell."""
    width, height, edge = 180, 18, 6

    def place(number: float) -> float:
        return edge + axis.place(number, width - 2 * edge)

    parts = [tag("line", x1=place(at), x2=place(at), y1=0, y2=height, class_="axis") for at in (0, 1)]
    if low is not None and high is not None:
        parts.append(tag("line", x1=place(low), x2=place(high), y1=9, y2=9, class_="whisker"))
    parts.append(tag("circle", cx=place(value), cy=9, r=4, class_="c0"))
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true")


def scale(low: str, high: str, signed: bool = False) -> Markup:
    """What the shades of a heat map mean, from one end to the other."""
    steps, width = 20, 9
    parts: list[object] = []
    for i in range(steps + 1):
        shade = 2 * i / steps - 1 if signed else i / steps
        hue = "heat" if not signed else "below" if shade < 0 else "above"
        parts.append(tag("rect", x=i * width, width=width, height=12, class_=hue, fill_opacity=abs(shade)))
    bar = tag(
        "svg", *parts, viewBox=f"0 0 {(steps + 1) * width} 12", width=(steps + 1) * width, height=12, aria_hidden="true"
    )
    return tag("p", low, bar, high, class_="scale")


def clip(text: str, most: int) -> str:
    """Words as a label has room for."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
