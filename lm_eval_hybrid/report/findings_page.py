"""The page of a discovery run: the behaviors found, and how they were found, as one HTML file.

It can be read without its script, which only picks behaviors and shows the sentences of the map (findings.js).
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lm_eval_hybrid.common.errors import clip
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import cells, charts, page
from lm_eval_hybrid.report.charts import Axis, Line, tag
from lm_eval_hybrid.report.findings import BehaviorRow, CalibrationRow, CurvePoint, Findings, SweepRow

PARTS = ("stability", "silhouette", "confidence", "explained", "word_information")
_CURVE = 400  # points of a curve that are drawn; more cannot be seen
_MARKED = 40  # points of a curve that have markers; more would hide the line
_DENSE = 17  # columns of a heat map, above which cells are too small for text
_METHODS = ("sae", "k-means", "gmm")
_MAP = (1040, 700)  # pixels
_SHARES = Axis("", (0.0, 1.0))
_HELD_OUT = {
    "explained_variance": "of the variance of held-out sentences is explained by the sparse autoencoder",
    "gate_rate": "of held-out tokens are gates, where the two models disagree",
    "hit_rate_bias_only": "hit rate with the bias alone: how often the base then picks the thinking model's token",
    "hit_rate": "hit rate with the bias and the behaviors' vectors",
    "gap_recovered": "of the gap between the two models is recovered on the calibration problems",
}
_LOSSES = {
    "loss_unsteered": "nats: loss of the thinking model's tokens at held-out gates without steering",
    "loss_bias_only": "nats: the same loss with the bias alone",
    "loss": "nats: the same loss with the bias and the behaviors' vectors",
}


def write(findings: Findings, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_file(path, render(findings).encode())


def render(findings: Findings) -> str:
    """The page; a function of the findings alone."""
    fields = {
        "f": findings,
        "held_out": [_held_out(name, value) for name, value in findings.holdout.items()],
        "sentences": _sentences(findings),
        "map": _map(findings) if findings.points else None,
        "transitions": _transitions(findings) if any(map(any, findings.transitions)) else None,
        "sweep": _sweep(findings) if any(row.score is not None for row in findings.sweep) else None,
        "curves": _curves(findings) if findings.curves else None,
        "cosines": _cosines(findings) if findings.cosines else None,
        "effects": _effects(findings.behaviors),
        "calibration": _calibration(findings.calibration) if findings.calibration else None,
    }
    style, script = page.sources(["page.css", "charts.css", "findings.css"]), page.sources(["findings.js"])
    return page.render("findings.html.j2", style, script, _FILTERS, **fields)


def figure(value: float | None) -> str:
    """A number with 3 decimals, or a dash."""
    return cells.signed(cells.ABSENT if value is None else f"{value:.3f}")


def norm(value: float) -> str:
    """A norm with about 3 digits: `1,828` or `0.412`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, or a dash."""
    return cells.signed(cells.ABSENT if value is None else cells.points(value))


def is_chosen(row: SweepRow, findings: Findings) -> bool:
    """Whether the row is the bundle's taxonomy; only sparse autoencoders become bundles."""
    chosen = findings.chosen
    return chosen is not None and (row.layer, row.size, row.method) == (chosen.layer, chosen.size, "sae")


def share_bar(share: float, index: int) -> Markup:
    """A share as a bar in its behavior's colour."""
    return charts.bar(_SHARES, share, f"c{index % charts.COLOURS}")


_FILTERS = {
    "figure": figure,
    "norm": norm,
    "points": points,
    "share_bar": share_bar,
    "is_chosen": is_chosen,
    "window": lambda positions: str(positions) if positions else "all",
    "number": lambda value: f"{value:g}",
}


def _held_out(name: str, value: float) -> tuple[str, str]:
    if name in _HELD_OUT:
        return f"{value:.1%}", _HELD_OUT[name]
    return f"{value:.4g}", _LOSSES.get(name, name.replace("_", " "))


def _sentences(findings: Findings) -> list[tuple[int, BehaviorRow, list[str]]]:
    """The map's sentences by behavior, in the order of the map's marks; behaviors without any are left out."""
    texts = [[point.text for point in findings.points if point.behavior == i] for i in range(len(findings.behaviors))]
    return [(i, behavior, texts[i]) for i, behavior in enumerate(findings.behaviors) if texts[i]]


def _map(findings: Findings) -> Markup:
    """The sentences as marks: one path for each behavior, the most numerous at the back.

    The k-th `M` of a path is the centre of the behavior's k-th sentence; findings.js reads them.
    """
    xs, ys = [point.x for point in findings.points], [point.y for point in findings.points]
    spans = [(room - 28) / (max(v) - min(v)) for v, room in zip((xs, ys), _MAP, strict=True) if max(v) > min(v)]
    zoom, middle = min(spans, default=0.0), ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)
    paths: dict[int, list[str]] = {}
    for point in findings.points:
        at = _MAP[0] / 2 + (point.x - middle[0]) * zoom, _MAP[1] / 2 - (point.y - middle[1]) * zoom
        mark = charts.outline(point.behavior, round(at[0], 1), round(at[1], 1))
        paths.setdefault(point.behavior, []).append(mark)
    order = sorted(paths, key=lambda behavior: (-len(paths[behavior]), behavior))
    marks = [tag("path", d="".join(paths[b]), class_=f"mark {charts.look(b)}", data_b=b) for b in order]
    ring = tag("circle", r=8, cx=-20, cy=-20, class_="ring here")
    return charts.svg(*_MAP, f"Map of {len(xs):,} sentences, by behavior", *marks, ring, class_="map")


Cell = tuple[float, str, str]  # its shade from -1 to 1, its text, and the text shown on hover


def _heat(names: Sequence[str], first: int, columns: Sequence[str], table: Sequence[Sequence[Cell]]) -> dict[str, Any]:
    """What the template needs for a heat map, of whose rows those from `first` on are the behaviors."""
    rows = [
        {
            "index": i - first if i >= first else None,
            "name": name,
            "cells": [{"class": _shade(shade), "text": text, "hint": hint} for shade, text, hint in row],
        }
        for i, (name, row) in enumerate(zip(names, table, strict=True))
    ]
    return {"rows": rows, "columns": columns, "dense": len(columns) > _DENSE}


def _shade(value: float) -> str:
    """A cell's classes: strength in steps of 5%, hue, and the colour of text where the shade is strong.

    On a dark page text needs another colour already on a weaker shade.
    """
    strength = abs(value)
    text = " strong" if strength > 0.85 else " deep" if strength > 0.62 else ""
    return f"s{min(20, round(20 * strength))}{' below' if value < 0 else ''}{text}"


def _transitions(findings: Findings) -> dict[str, Any]:
    counts, titles = findings.transitions, [clip(behavior.title, 40) for behavior in findings.behaviors]
    totals = [sum(row) for row in counts]
    highest = max(count / max(1, total) for row, total in zip(counts, totals, strict=True) for count in row)

    def cell(i: int, j: int) -> Cell:
        share = counts[i][j] / max(1, totals[i])
        hint = f"{titles[i]} → {titles[j]}: {counts[i][j]:,} of {totals[i]:,} ({share:.1%})"
        return share / highest, f"{100 * share:.0f}" if share else "", hint

    numbers = range(len(titles))
    table = [[cell(i, j) for j in numbers] for i in numbers]
    names = [behavior.title for behavior in findings.behaviors]
    return {**_heat(names, 0, [str(i + 1) for i in numbers], table), "highest": f"{highest:.0%}"}


def _cosines(findings: Findings) -> dict[str, Any]:
    names = ["bias", *(behavior.title for behavior in findings.behaviors)]
    columns = ["bias", *(str(i + 1) for i in range(len(findings.behaviors)))]

    def cell(i: int, j: int) -> Cell:
        value = findings.cosines[i][j]
        text = cells.signed(f"{value:.2f}".replace("0.", "."))
        return value, text, f"{clip(names[i], 40)} and {clip(names[j], 40)}: cosine {cells.signed(f'{value:.2f}')}"

    table = [[cell(i, j) for j in range(len(names))] for i in range(len(names))]
    values = [[cells.signed(f"{value:.2f}") for value in row] for row in findings.cosines]
    return {**_heat(names, 1, columns, table), "figures": values}


def _sweep(findings: Findings) -> dict[str, Any]:
    rows = findings.sweep
    methods = sorted(
        {row.method for row in rows}, key=lambda m: (m not in _METHODS, _METHODS.index(m) if m in _METHODS else 0, m)
    )
    scored = [(row.score, row) for row in rows if row.score is not None]
    _, best = max(scored, key=lambda pair: pair[0])
    layer = best.layer if findings.chosen is None else findings.chosen.layer
    sizes, scores = (
        Axis.over("categories", [row.size for row in rows]),
        Axis.over("score", [score for score, _ in scored]),
    )
    layers = sorted({row.layer for _, row in scored})
    panel = (330, 220) if len(layers) <= 6 else (245, 180)
    panels = [
        charts.line_chart(f"layer {at}", _sweep_lines(findings, methods, at, "score"), sizes, scores, *panel)
        for at in layers
    ]
    parts = []
    for part in PARTS:
        lines = _sweep_lines(findings, methods, layer, part)
        if lines:
            name = part.replace("_", " ")
            parts.append(charts.line_chart(name, lines, sizes, _span(name, lines)))
    return {"panels": panels, "parts": parts, "layer": layer, "methods": methods}


def _sweep_lines(findings: Findings, methods: Sequence[str], layer: int, part: str) -> list[Line]:
    lines = []
    for index, method in enumerate(methods):
        rows = [row for row in findings.sweep if (row.layer, row.method) == (layer, method)]
        rows = sorted((row for row in rows if getattr(row, part) is not None), key=lambda row: row.size)
        values = [(float(row.size), float(getattr(row, part))) for row in rows]
        name = part.replace("_", " ")
        hints = [f"{method}, layer {layer}, {size:g} categories: {name} {value:.3f}" for size, value in values]
        ringed = next((i for i, row in enumerate(rows) if is_chosen(row, findings)), None)
        if rows:
            lines.append(Line(values, index, hints=hints, ringed=ringed))
    return lines


def _span(label: str, lines: Iterable[Line]) -> Axis:
    return Axis.over(label, [y for line in lines for _, y in line.points])


def _curves(findings: Findings) -> dict[str, Any]:
    """Fits whose names end in the same word share a chart of losses and one of norms."""
    by_word: dict[str, list[str]] = {}
    for name in findings.curves:
        by_word.setdefault((name.split() or [name])[-1], []).append(name)
    groups = []
    for word, names in by_word.items():
        drawn = [_thinned(findings.curves[name]) for name in names]
        epochs = Axis.over("epoch", [point.epoch for curve in drawn for point in curve])
        panels = []
        for title, unit, parts in (
            ("loss", "nats", ("loss", "held_out")),
            ("mean norm of the vectors", "norm", ("norm",)),
        ):
            lines = [line for i, curve in enumerate(drawn) for part in parts for line in _curve_lines(curve, i, part)]
            if lines:
                panels.append(charts.line_chart(f"{word}: {title}", lines, epochs, _span(unit, lines), 508, 260))
        groups.append({"panels": panels, "names": names})
    rows = []
    for name, curve in findings.curves.items():
        known = [(point.held_out, point) for point in curve if point.held_out is not None]
        rows.append((name, curve[-1], min(known, key=lambda pair: pair[0])[1] if known else None))
    return {"groups": groups, "rows": rows}


def _curve_lines(curve: Sequence[CurvePoint], index: int, part: str) -> list[Line]:
    values = [(float(p.epoch), float(getattr(p, part))) for p in curve if getattr(p, part) is not None]
    values = [(x, y) for x, y in values if math.isfinite(y)]
    hints = [f"epoch {x:g}: {y:.3f}" for x, y in values] if len(values) <= _MARKED else []
    return [Line(values, index, part == "held_out", hints)] if values else []


def _thinned(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    stride = -(-len(curve) // _CURVE)
    return [*curve[::stride], *([] if (len(curve) - 1) % stride == 0 else [curve[-1]])]


def _effects(behaviors: Sequence[BehaviorRow]) -> dict[str, Any] | None:
    effects = [None if behavior.effect is None else 100 * behavior.effect for behavior in behaviors]
    known = [effect for effect in effects if effect is not None]
    if not known:
        return None
    axis = Axis.over("", [0.0, *known])
    bars = [charts.bar(axis, effect, f"c{i % charts.COLOURS}") for i, effect in enumerate(effects)]
    return {"bars": bars, "axis": charts.row_axis(axis)}


def _calibration(rows: Sequence[CalibrationRow]) -> list[tuple[CalibrationRow, str, Markup | None]]:
    ends = [100 * end for row in rows for end in (row.gap, row.gap_low, row.gap_high) if end is not None]
    axis = Axis("", (min([0.0, *ends]), 0.0, 100.0, max([100.0, *ends])))
    shown = []
    for row in rows:
        gap = None if row.gap is None else (row.gap, row.gap_low, row.gap_high)
        shown.append((row, _gap(row), None if gap is None else charts.interval(axis, gap, "hybrid")))
    return shown


def _gap(row: CalibrationRow) -> str:
    if row.gap is None:
        return "undefined"
    if row.gap_low is None or row.gap_high is None:
        return cells.signed(f"{row.gap:.1%}")
    return cells.signed(f"{row.gap:.1%} [{100 * row.gap_low:.1f}, {100 * row.gap_high:.1f}]")
