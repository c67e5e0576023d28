"""Plots for papers, as PNG and SVG: the gap that each arm recovers, accuracy by tokens steered, behaviors used.

matplotlib is imported only here, and only when plots are asked for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import arm_charts, figures
from lm_eval_hybrid.report.charts import clip
from lm_eval_hybrid.report.page import writable
from lm_eval_hybrid.results.comparison import ArmFigures, BehaviorUse, TaskComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"hybrid": "#1f5fbf", "control": "#57606b", "harm": "#b85a00", "without": "#8b95a1"}
_INK, _RULE, _BAR = "#1b1f24", "#d9dde2", "#8fb0e0"
_DPI = 200
_STYLE = {
    "font.size": 8,
    "axes.edgecolor": "#57606b",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,  # names are other people's words
    "svg.fonttype": "none",
    "svg.hashsalt": "lm-eval-hybrid",
}


def check() -> None:
    """That matplotlib is there.

    Raises:
        HybridError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise HybridError("--plots needs matplotlib; found none; pip install 'lm-eval-hybrid[plots]'") from None


def write(comparison: Sequence[TaskComparison], folder: Path) -> list[Path]:
    """Writes every task's plots, and returns their paths: <plot>-<task>.png and .svg.

    Raises:
        HybridError: matplotlib is missing.
    """
    check()
    from matplotlib import rc_context

    written = []
    with rc_context(_STYLE):
        for task, name in zip(comparison, _names(comparison), strict=True):
            for plot, figure in _plots(task):
                for kind in ("png", "svg"):
                    path = folder / f"{plot}-{name}.{kind}"
                    write_file(path, _drawn(figure, kind))
                    written.append(path)
    return written


def _names(comparison: Sequence[TaskComparison]) -> list[str]:
    """Of files: tasks' names without what a path has meanings for."""
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "-", task.task)[:80] for task in comparison]
    return [f"{name}-{i + 1}" if plain.count(name) > 1 else name for i, name in enumerate(plain)]


def _plots(task: TaskComparison) -> Iterator[tuple[str, Figure]]:
    arms = [arm for arm in task.arms if arm.gap is not None]
    if any(arm.gap.recovered is not None for arm in arms):
        yield "gap", _gaps(task, arms)
    if arm_charts.steered_points(task.arms):
        yield "accuracy", _accuracy(task)
    if task.behaviors:
        yield "behaviors", _behaviors(task)


def _drawn(figure: Figure, kind: str) -> bytes:
    held = io.BytesIO()
    # Without its date, a plot of the same figures has the same bytes.
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(held, format=kind, dpi=_DPI, metadata=metadata, bbox_inches="tight")
    return held.getvalue()


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_name(title, 70), loc="left", fontsize=8.5, fontweight="bold")
    axes.set_axisbelow(True)
    return figure, axes


def _gaps(task: TaskComparison, arms: Sequence[ArmFigures]) -> Figure:
    figure, axes = _figure(4.6, 0.7 + 0.24 * len(arms), f"{task.task}, {task.documents:,} documents")
    axis = arm_charts.gap_axis(arms)
    low, high = axis.marks[0], axis.marks[-1]
    axes.axvspan(100 * low, 0, color=COLOURS["harm"], alpha=0.08, linewidth=0)
    for end in (0, 100):
        axes.axvline(end, color=COLOURS["control"], linewidth=0.8)
    for row, arm in enumerate(arms):
        gap, colour = arm.gap, COLOURS[arm_charts.kind(arm)]
        if gap.recovered is None:
            axes.text(2, row, f"undefined: {gap.reason}", va="center", color=COLOURS["control"])
            continue
        if gap.low is not None and gap.high is not None:
            axes.plot([100 * gap.low, 100 * gap.high], [row, row], color=colour, linewidth=1.5, solid_capstyle="round")
        marker, within = "o" if arm.arm == "hybrid" else "D", low <= gap.recovered <= high
        axes.plot(100 * gap.recovered, row, marker=marker, color=colour, markersize=4.5, clip_on=not within)
        axes.annotate(
            figures.recovered(gap).replace("-", "\N{MINUS SIGN}"),
            (1.035, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(arms)), [_name(arm.arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(100 * low, 100 * high)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_RULE, linewidth=0.5)
    axes.set_xlabel("gap recovered (%), 0 the base, 100 the thinking model; 95% intervals")
    return figure


def _accuracy(task: TaskComparison) -> Figure:
    figure, axes = _figure(4.2, 3.0, f"{task.task}, {task.documents:,} documents")
    shown = arm_charts.steered_points(task.arms)
    for arm, steered in shown:
        colour, right = COLOURS[arm_charts.kind(arm)], arm.accuracy
        marker = {"hybrid": "o", "base": "s"}.get(arm.arm, "D")
        ends = [100 * right.low, 100 * right.high]
        axes.plot([100 * steered] * 2, ends, color=colour, linewidth=0.9, alpha=0.6, clip_on=False)
        axes.plot(100 * steered, 100 * right.value, marker=marker, color=colour, markersize=4.5, clip_on=False)
    if (thinking := task.arm("thinking")) is not None:
        axes.axhline(100 * thinking.accuracy.value, color=_INK, linewidth=0.8, linestyle=(0, (5, 4)))
        place = (axes.get_xlim()[1], 100 * thinking.accuracy.value)
        axes.annotate(
            "thinking model", place, (0, -3), textcoords="offset points", ha="right", va="top", fontsize=7, color=_INK
        )
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=_RULE, linewidth=0.5)
    axes.set_xlabel("tokens steered (%)")
    axes.set_ylabel("accuracy (%), 95% intervals")
    figure.draw_without_rendering()  # where points are is known only then
    _label(axes, shown, thinking)
    return figure


def _label(axes: Axes, shown: Sequence[tuple[ArmFigures, float]], thinking: ArmFigures | None) -> None:
    """Names beside their points, where they cover nothing."""
    scale = 96 / axes.figure.dpi  # in pixels of a page, as `place_labels` has them
    box = axes.get_window_extent()
    width, height = box.width * scale, box.height * scale

    def place(steered: float, right: float) -> tuple[float, float]:
        x, y = axes.transData.transform((100 * steered, 100 * right))
        return (x - box.x0) * scale, (box.y1 - y) * scale

    full = []
    if thinking is not None:
        _, line = place(0.0, thinking.accuracy.value)
        full.append((width - 90, line, width, line + 20))
    points = [place(steered, arm.accuracy.value) for arm, steered in shown]
    names = [_name(arm_charts.label_of(arm)) for arm, _ in shown]
    labels = arm_charts.place_labels(points, names, (0.0, -8.0, width, height), full)
    for (arm, steered), name, label in zip(shown, names, labels, strict=True):
        if label is None:
            continue
        sides = {"start": "left", "middle": "center", "end": "right"}
        axes.annotate(
            name,
            (100 * steered, 100 * arm.accuracy.value),
            (label.dx * 0.75, -(label.dy - 4) * 0.75),
            textcoords="offset points",
            ha=sides[label.anchor],
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},  # lines do not cross words
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": COLOURS["control"]} if label.far else None,
        )


def _behaviors(task: TaskComparison) -> Figure:
    uses = task.behaviors
    figure, axes = _figure(4.6, 0.7 + 0.22 * len(uses), f"{task.task}: behaviors used")
    axes.barh(range(len(uses)), [100 * use.share for use in uses], color=_BAR, height=0.62)
    for row, use in enumerate(uses):
        axes.annotate(_beside(use), (100 * use.share, row), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(uses)), [_name(use.behavior) for use in uses])
    axes.set_ylim(len(uses) - 0.5, -0.5)
    axes.set_xlim(0, 100 * max(use.share for use in uses) * 1.05 or 1)
    axes.tick_params(axis="y", length=0)
    lost = "; points of accuracy lost without it [95%]" if any(use.left_out for use in uses) else ""
    axes.set_xlabel(f"share of steered tokens (%){lost}")
    return figure


def _beside(use: BehaviorUse) -> str:
    if use.left_out is None:
        return f"{100 * use.share:.1f}"
    lost = figures.difference(use.left_out.difference).replace("-", "\N{MINUS SIGN}")
    return f"{100 * use.share:.1f}; {lost}"


def _name(words: str, longest: int = 30) -> str:
    return clip(writable(" ".join(words.split())), longest)
