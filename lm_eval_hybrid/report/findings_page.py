"""What was found, as one HTML page: no network, and no script needed but to point at the map and to pick behaviors.

The template is findings.html.j2 beside this file, with the page's style and script; the charts are drawn in `charts`.
Words on the page are other people's: they are escaped wherever they stand, none of them is inside the script, and the
page forbids its browser whatever is not its own, by digest.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import charts
from lm_eval_hybrid.report.charts import Axis, Heat, Line
from lm_eval_hybrid.report.findings import BehaviorRow, CalibrationRow, CurvePoint, Findings, SweepRow
from lm_eval_hybrid.report.page import writable

if TYPE_CHECKING:
    from jinja2 import Template

NONE = "\N{EN DASH}"
PARTS = ("stability", "silhouette", "confidence", "explained", "word_information")
_TEMPLATE = Path(__file__).with_name("findings.html.j2")
_CURVE = 400  # points of a curve that are drawn; more cannot be seen
_MARKED = 40  # points of a curve that are marked; more would hide the line
_METHODS = ("sae", "k-means", "gmm")
_HELD_OUT = {
    "explained_variance": "of the variance of held-out sentences is explained by the sparse autoencoder",
    "gate_rate": "of held-out tokens are gates: there the two models disagree",
    "hit_rate_bias_only": "of held-out gates are hit with the bias alone: the base says the other model's token",
    "hit_rate": "of held-out gates are hit with the bias and the behaviors' vectors",
    "gap_recovered": "of the gap between the two models is recovered on the problems of the calibration",
}
_LOSSES = {
    "loss_unsteered": "nats is the loss of the thinking model's token at held-out gates, unsteered",
    "loss_bias_only": "nats is that loss with the bias alone",
    "loss": "nats is that loss with the bias and the behaviors' vectors",
}


def render(found: Findings) -> str:
    """The page; a function of the findings alone."""
    return writable(
        _template().render(
            f=found,
            held_out=[_held_out(name, value) for name, value in found.holdout.items()],
            said=_said(found),
            map=_map(found) if found.points else None,
            transitions=_transitions(found) if any(map(any, found.transitions)) else None,
            sweep=_sweep(found) if any(row.score is not None for row in found.sweep) else None,
            curves=_curves(found) if found.curves else None,
            cosines=_cosines(found) if found.cosines else None,
            effects=_effects(found) if any(b.effect is not None for b in found.behaviors) else None,
            calibration=_calibration(found.calibration) if found.calibration else None,
        )
    )


def write(findings: Findings, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_file(path, render(findings).encode())


def percent(value: float | None) -> str:
    """A share: `12.3%`, or a dash where there is none."""
    return NONE if value is None else f"{value:.1%}"


def figure(value: float | None) -> str:
    """A number with 3 decimals, or a dash."""
    return NONE if value is None else f"{value:.3f}"


def norm(value: float) -> str:
    """A norm with about 3 digits: `1,828` or `0.412`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def points_of(value: float | None) -> str:
    """A difference of shares in percentage points: `+12.3`, or a dash."""
    return NONE if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"  # not -0.0


def _held_out(name: str, value: float) -> tuple[str, str]:
    if name in _HELD_OUT:
        return percent(value), _HELD_OUT[name]
    return f"{value:.4g}", _LOSSES.get(name, name.replace("_", " "))


def _said(found: Findings) -> list[tuple[int, BehaviorRow, list[str]]]:
    """The map's sentences by behavior, in the order of the map's marks; of behaviors that have some."""
    texts = {i: [point.text for point in found.points if point.behavior == i] for i in range(len(found.behaviors))}
    return [(i, behavior, texts[i]) for i, behavior in enumerate(found.behaviors) if texts[i]]


def _map(found: Findings) -> Markup:
    points = [(point.x, point.y, point.behavior) for point in found.points]
    return charts.scatter(points, f"Map of {len(points):,} sentences, by behavior")


def _transitions(found: Findings) -> dict[str, Any]:
    counts, titles = found.transitions, [behavior.title for behavior in found.behaviors]
    totals = [sum(row) for row in counts]
    shares = [[count / max(1, total) for count in row] for row, total in zip(counts, totals, strict=True)]
    highest = max(map(max, shares))

    def hint(i: int, j: int) -> str:
        first, then = charts.clip(titles[i], 40), charts.clip(titles[j], 40)
        return f"{first} → {then}: {counts[i][j]:,} of {totals[i]:,} ({shares[i][j]:.1%})"

    heat = Heat(
        shades=[[share / highest for share in row] for row in shares],
        shown=[[f"{100 * share:.0f}" if share else "" for share in row] for row in shares],
        hint=hint,
        rows=titles,
        columns=[str(i + 1) for i in range(len(titles))],
        looks=range(len(titles)),
        x_label="… is followed by",
        y_label="a sentence of",
    )
    picture = charts.heat_map(heat, "Which behavior follows which")
    return {"picture": picture, "scale": charts.scale("0%", f"{highest:.0%}")}


def _cosines(found: Findings) -> dict[str, Any]:
    names = ["bias", *(behavior.title for behavior in found.behaviors)]
    numbers = ["bias", *(str(i + 1) for i in range(len(found.behaviors)))]
    heat = Heat(
        shades=found.cosines,
        shown=[[f"{value:.2f}".replace("0.", ".") for value in row] for row in found.cosines],
        hint=lambda i, j: (
            f"{charts.clip(names[i], 40)} and {charts.clip(names[j], 40)}: cosine {found.cosines[i][j]:.2f}"
        ),
        rows=names,
        columns=numbers,
        looks=[None, *range(len(found.behaviors))],
        x_label="cosine with",
        y_label="",
    )
    picture = charts.heat_map(heat, "Cosines of the vectors", signed=True)
    rows = [[f"{value:.2f}" for value in row] for row in found.cosines]
    return {"picture": picture, "scale": charts.scale("-1", "1", signed=True), "names": numbers, "rows": rows}


def _sweep(found: Findings) -> dict[str, Any]:
    methods = sorted({row.method for row in found.sweep}, key=lambda m: (m not in _METHODS, *_order(m)))
    scored = [row for row in found.sweep if row.score is not None]
    best = max(scored, key=lambda row: row.score or 0.0)
    layer = found.chosen.layer if found.chosen else best.layer
    sizes = Axis.over("categories", [row.size for row in found.sweep])
    scores = Axis.over("score", [row.score for row in scored if row.score is not None])
    layers = sorted({row.layer for row in scored})
    size = (330, 220) if len(layers) <= 6 else (245, 180)
    panels = [
        charts.panel(f"layer {at}", _sweep_lines(found, methods, at, "score"), sizes, scores, *size) for at in layers
    ]
    parts = []
    for part in PARTS:
        values = [getattr(row, part) for row in found.sweep if row.layer == layer and getattr(row, part) is not None]
        if values:
            lines = _sweep_lines(found, methods, layer, part)
            parts.append(charts.panel(part, lines, sizes, Axis.over(part, values)))
    key = charts.key([(method, index, False) for index, method in enumerate(methods)])
    return {"panels": panels, "parts": parts, "layer": layer, "key": key}


def _order(method: str) -> tuple[int, str]:
    return (_METHODS.index(method) if method in _METHODS else 0, method)


def _sweep_lines(found: Findings, methods: Sequence[str], layer: int, part: str) -> list[Line]:
    lines = []
    for index, method in enumerate(methods):
        rows = [row for row in found.sweep if (row.layer, row.method) == (layer, method)]
        rows = sorted((row for row in rows if getattr(row, part) is not None), key=lambda row: row.size)
        if rows:
            hints = [f"{method}, layer {layer}, {row.size} categories: {part} {getattr(row, part):.3f}" for row in rows]
            values = [(float(row.size), float(getattr(row, part))) for row in rows]
            lines.append(Line(values, index, hints=hints, ringed=_chosen(found, rows)))
    return lines


def _chosen(found: Findings, rows: Sequence[SweepRow]) -> int | None:
    return next((i for i, row in enumerate(rows) if is_chosen(found, row)), None)


def is_chosen(found: Findings, row: SweepRow) -> bool:
    """Whether the bundle's taxonomy is that of the row: only autoencoders become bundles."""
    chosen = found.chosen
    return chosen is not None and (row.layer, row.size, row.method) == (chosen.layer, chosen.size, "sae")


def _curves(found: Findings) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for name in found.curves:
        groups.setdefault((name.split() or [name])[-1], []).append(name)
    figures = []
    for group, names in groups.items():
        drawn = {name: _thinned(found.curves[name]) for name in names}
        steps = Axis.over("epoch", [step.epoch for curve in drawn.values() for step in curve])
        panels = []
        for title, y, parts in (
            ("loss", "nats", (("loss", False), ("held_out", True))),
            ("mean norm of the vectors", "norm", (("norm", False),)),
        ):
            lines = [line for i, name in enumerate(names) for line in _curve_lines(drawn[name], i, parts)]
            if lines:
                values = [y for line in lines for _, y in line.points]
                panels.append(charts.panel(f"{group}: {title}", lines, steps, Axis.over(y, values), 508, 260))
        held_out = any(step.held_out is not None for curve in drawn.values() for step in curve)
        entries = [(name, i, False) for i, name in enumerate(names)] + ([("held out", 0, True)] if held_out else [])
        figures.append({"panels": panels, "key": charts.key(entries)})
    return {"figures": figures, "rows": [_last(name, curve) for name, curve in found.curves.items()]}


def _curve_lines(curve: Sequence[CurvePoint], index: int, parts: Iterable[tuple[str, bool]]) -> list[Line]:
    lines = []
    for part, dashed in parts:
        values = [(float(s.epoch), float(getattr(s, part))) for s in curve if getattr(s, part) is not None]
        if values:
            hints = [f"epoch {x:g}: {y:.3f}" for x, y in values] if len(values) <= _MARKED else []
            lines.append(Line(values, index, dashed, hints))
    return lines


def _thinned(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    stride = -(-len(curve) // _CURVE)
    return list(curve[::stride]) + ([] if (len(curve) - 1) % stride == 0 else [curve[-1]])


def _last(name: str, curve: Sequence[CurvePoint]) -> dict[str, Any]:
    least = min((step for step in curve if step.held_out is not None), key=lambda s: s.held_out or 0.0, default=None)
    return {"name": name, "last": curve[-1], "least": least}


def _effects(found: Findings) -> Markup:
    rows = []
    for behavior in found.behaviors:
        gates = f"{behavior.gates:,} gates"
        value = None if behavior.effect is None else 100 * behavior.effect
        beside = "not measured" if value is None else f"{points_of(behavior.effect)}, {gates}"
        rows.append((behavior.title, value, beside))
    axis = Axis.over("gates hit, with the vector minus with the bias alone (percentage points)", _and_zero(rows))
    return charts.bars(rows, axis, "Effect of each behavior's vector")


def _and_zero(rows: Iterable[tuple[str, float | None, str]]) -> list[float]:
    return [0.0, *(value for _, value, _ in rows if value is not None)]


def _calibration(rows: Sequence[CalibrationRow]) -> list[tuple[CalibrationRow, str, Markup | None]]:
    ends = [v for row in rows for v in (row.gap, row.gap_low, row.gap_high) if v is not None]
    axis = Axis("", [min([0.0, *ends]), max([1.0, *ends])])
    return [
        (row, _gap(row), None if row.gap is None else charts.interval(row.gap, row.gap_low, row.gap_high, axis))
        for row in rows
    ]


def _gap(row: CalibrationRow) -> str:
    if row.gap is None:
        return "undefined"
    if row.gap_low is None or row.gap_high is None:
        return percent(row.gap)
    return f"{row.gap:.1%} [{100 * row.gap_low:.1f}, {100 * row.gap_high:.1f}]"


@functools.cache
def _template() -> Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "percent": percent,
        "figure": figure,
        "points": points_of,
        "norm": norm,
        "share": charts.share,
        "chip": charts.chip,
        "clip": charts.clip,
        "is_chosen": lambda row, found: is_chosen(found, row),
        "window": lambda positions: str(positions) if positions else "all",
        "number": lambda value: f"{value:g}",
        "count": lambda value: f"{value:,}",
        "sha256": _sha256,
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
