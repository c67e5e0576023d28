"""Arms compared, as one HTML page: every figure, and every answer with its steered tokens marked.

The template is comparison.html.j2 beside this file, its style comparison.css, its script comparison_list.js (the list
of documents) and comparison_reader.js (the one that is open). The page needs no network. Models' and data sets' words
are escaped wherever they stand; those that the script shows are packed as data, and it shows them as text; and the page
forbids its browser whatever is not its own, by digest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import arm_charts, figures, provenance
from lm_eval_hybrid.report.answer import PALETTE
from lm_eval_hybrid.report.documents import CORE, Pack, numbered, pack
from lm_eval_hybrid.report.page import digest, environment, writable
from lm_eval_hybrid.results.comparison import ArmFigures, TaskComparison
from lm_eval_hybrid.results.runs import WITHOUT, ArmRun, Runs
from lm_eval_hybrid.results.statistics import Gap

if TYPE_CHECKING:
    from jinja2 import Template

INK, PAPER = ("#1b1f24", "#e7eaee"), ("#ffffff", "#15181d")  # by day and by night
STRENGTH = (0.62, 0.40)  # of a behavior's colour in the ground of its words
_FOLDER = Path(__file__).parent
_SCRIPTS = ("comparison_list.js", "comparison_reader.js")


def render(runs: Runs, comparison: Sequence[TaskComparison], seed: int, made: Mapping[str, Any] | None = None) -> str:
    """The page; a function of its arguments and of the runs' files alone.

    Args:
        comparison: what `compare` found in `runs` with that seed of the bootstrap.
        made: content of the runs' gap.json, if there is one: the command and the hardware that made them.

    Raises:
        HybridError: for a file of samples or token records that cannot be read.
    """
    packs = pack(runs, comparison)
    made = made or {}
    facts = [*provenance.facts(runs, seed), *provenance.hardware(made.get("hardware"))]
    return writable(
        _template().render(
            title=dict(facts)["bundle"],
            tasks=[_task(task, runs.arms(task.task), held) for task, held in zip(comparison, packs, strict=True)],
            facts=facts,
            runs=runs.runs,
            command=provenance.command(made.get("command")),
            numbers=numbered(comparison),
            colours=len(PALETTE),
            style=_style(),
            script=_script(),
            blocks=[block for held in packs for block in _blocks(held)],
        )
    )


def write(
    runs: Runs, comparison: Sequence[TaskComparison], seed: int, path: Path, made: Mapping[str, Any] | None = None
) -> None:
    """Writes the page, whole or not at all."""
    write_file(path, render(runs, comparison, seed, made).encode())


def _task(task: TaskComparison, runs: dict[str, ArmRun], held: Pack) -> dict[str, Any]:
    ends = [arm for arm in task.arms if arm.arm not in ("base", "thinking")]
    axis = arm_charts.gap_axis(ends)
    told = {f"{WITHOUT}{use.behavior}" for use in task.behaviors if use.left_out is not None}
    gaps = [(arm.arm, arm_charts.gap_row(arm, axis), _short(arm.gap)) for arm in ends]
    return {
        "name": task.task,
        "figures": task,
        "rows": [row for row in figures.rows(task) if row[0] not in told],  # the others are with the behaviors
        "tiles": _tiles(task),
        "notes": _notes(task, runs, held),
        "gaps": gaps if any(arm.gap is not None for arm in ends) else [],
        "scale": arm_charts.gap_scale(axis),
        "scatter": arm_charts.accuracy_by_steered(task.arms) if arm_charts.steered_points(task.arms) else None,
        "left_out": bool(told),
        "arms": ",".join(arm.arm for arm in task.arms if not arm.arm.startswith(WITHOUT)),
    }


def _short(gap: Gap | None) -> str:
    """What stands beside its row: reasons are in the table."""
    if gap is None or gap.recovered is None:
        return "undefined"
    return f"{gap.recovered:+.1%}{'' if gap.reason is None else ', no interval'}"


def _tiles(task: TaskComparison) -> list[tuple[str, str]]:
    """What the hybrid comes to, in a few large figures."""
    hybrid, base, thinking = (task.arm(name) for name in ("hybrid", "base", "thinking"))
    if hybrid is None:
        return []
    tiles = []
    if hybrid.gap is not None and hybrid.gap.recovered is not None:
        gap = hybrid.gap
        known = gap.low is not None and gap.high is not None
        between = f" (95%: {100 * gap.low:+.1f} to {100 * gap.high:+.1f})" if known else ""
        tiles.append((f"{gap.recovered:+.1%}", f"of the gap between base and thinking model is recovered{between}"))
    if base is not None:
        beyond = "" if thinking is None else f"; the thinking model's is {thinking.accuracy.value:.1%}"
        values = f"{base.accuracy.value:.1%} → {hybrid.accuracy.value:.1%}"
        tiles.append((values, f"is the accuracy of the base, and of the hybrid{beyond}"))
    if hybrid.steered is not None:
        said = "are not what the base would have said"
        changed = "" if hybrid.changed is None else f"; {hybrid.changed.tokens:.1%} {said}"
        tiles.append((f"{hybrid.steered.tokens:.1%}", f"of the hybrid's tokens are steered{changed}"))
    if strongest := _strongest(task):
        tiles.append((f"{strongest.gap.recovered:+.1%}", f"is recovered by {strongest.arm}, the strongest control"))
    return tiles


def _strongest(task: TaskComparison) -> ArmFigures | None:
    controls = [
        arm
        for arm in task.arms
        if arm.arm not in CORE and not arm.arm.startswith(WITHOUT) and arm.gap and arm.gap.recovered is not None
    ]
    return max(controls, key=lambda arm: arm.gap.recovered, default=None)


def _notes(task: TaskComparison, runs: dict[str, ArmRun], held: Pack) -> list[str]:
    """What is missing, or must be known to read the figures."""
    notes = []
    if task.missing:
        notes.append(f"No run of {_and(task.missing)}: without it there is no gap to recover.")
    if "hybrid" not in runs:
        notes.append("No run of hybrid: there is nothing to compare the other arms with.")
    if bare := [arm for arm, run in runs.items() if run.sidecar is None]:
        notes.append(
            f"No token records of {_and(bare)} (tokens_*.jsonl): answers are shown as the samples have them, "
            "without lengths and marks."
        )
    first, *others = runs.values()
    prompts = [document.prompt_hash for document in first.documents]
    if other := [run.arm for run in others if [document.prompt_hash for document in run.documents] != prompts]:
        notes.append(f"Prompts of {_and(other)} differ from those of {first.arm}, which are the ones shown.")
    if held.left_out:
        parts = [f"{arm} ({count:,} of {task.documents:,} documents)" for arm, count in held.left_out]
        notes.append(f"To keep the page small, answers are left out of {_and(parts)}; lm-eval-hybrid compare has them.")
    return notes


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _blocks(held: Pack) -> list[dict[str, Any]]:
    # Base64 has nothing to escape.
    parts = [(held.index, True), *((block, False) for block in held.blocks)]
    return [{"name": block.name, "text": Markup(block.text), "index": index} for block, index in parts]


def shade(colour: str, paper: str, strength: float) -> str:
    """`#rrggbb` between a paper's colour and another; the latter at a strength of 1."""
    parts = [(int(colour[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(strength * a + (1 - strength) * b):02x}" for a, b in parts)


@functools.cache
def _style() -> Markup:
    day, night = (
        "".join(f"--b{i}:{shade(colour, paper, strength)};" for i, colour in enumerate(PALETTE))
        for paper, strength in zip(PAPER, STRENGTH, strict=True)
    )
    grounds = "\n".join(f".b{i} {{ --b: var(--b{i}); }}" for i in range(len(PALETTE)))
    # Paper is white, whatever the screen is.
    return Markup(
        f":root {{ {day} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n{grounds}\n"
        + (_FOLDER / "comparison.css").read_text(encoding="utf-8")
    )


@functools.cache
def _script() -> Markup:
    parts = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return Markup(f'(() => {{\n"use strict";\nconst COLOURS = {len(PALETTE)};\n{parts}}})();\n')


@functools.cache
def _template() -> Template:
    made = environment()
    made.filters |= {
        "digest": digest,
        "count": lambda value: f"{value:,}",
        "speed": figures.count,
        "difference": figures.difference,
        "p_value": figures.p_value,
    }
    return made.from_string((_FOLDER / "comparison.html.j2").read_text(encoding="utf-8"))
