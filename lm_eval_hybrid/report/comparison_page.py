"""The page of a comparison: every figure of every arm, and every answer with its steered tokens marked.

The figures can be read without its script. Documents and answers are packed as data (see `documents`), which the script
shows as text: comparison_list.js lists the documents, comparison_reader.js shows the one that is open.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import cells, charts, page
from lm_eval_hybrid.report.answer import PALETTE
from lm_eval_hybrid.report.charts import Axis
from lm_eval_hybrid.report.documents import CORE, DocumentPack, numbered, pack
from lm_eval_hybrid.results.comparison import TaskComparison
from lm_eval_hybrid.results.runs import WITHOUT, ArmRun, Runs
from lm_eval_hybrid.results.statistics import Gap

INK, PAPER = ("#1b1f24", "#e7eaee"), ("#ffffff", "#15181d")  # of the light and the dark theme
STRENGTH = (0.62, 0.40)  # share of a behavior's colour in the background of its tokens (light, dark theme)
_SHARES = Axis("", (0.0, 1.0))


def write(
    runs: Runs, comparison: Sequence[TaskComparison], seed: int, path: Path, recorded: Mapping[str, Any] | None = None
) -> None:
    """Write the page, whole or not at all."""
    write_file(path, render(runs, comparison, seed, recorded).encode())


def render(
    runs: Runs, comparison: Sequence[TaskComparison], seed: int, recorded: Mapping[str, Any] | None = None
) -> str:
    """The page; a function of its arguments and of the runs' files alone.

    Args:
        comparison: what `compare` returned for `runs` with that seed of the bootstrap.
        recorded: the content of the runs' gap.json, if there is one: it has the command and the hardware.

    Raises:
        HybridError: for a file of samples or token records that cannot be read.
    """
    packs = pack(runs, comparison)
    recorded = recorded or {}
    facts = [*cells.provenance(runs, seed), *cells.hardware(recorded.get("hardware"))]
    command = recorded.get("command")
    return page.render(
        "comparison.html.j2",
        style=_style(),
        script=_script(),
        filters={"speed": cells.count, "difference": cells.difference, "p_value": cells.p_value},
        title=dict(facts)["bundle"],
        tasks=[_task(task, runs.arms(task.task), held) for task, held in zip(comparison, packs, strict=True)],
        facts=facts,
        runs=runs.runs,
        command=command if isinstance(command, str) else None,
        numbers=numbered(comparison),
        colours=len(PALETTE),
        share_bar=lambda share, number: charts.bar(_SHARES, share, f"b{number % len(PALETTE)}"),
        blocks=[block for held in packs for block in _blocks(held)],
    )


def _task(task: TaskComparison, runs: dict[str, ArmRun], held: DocumentPack) -> dict[str, Any]:
    ends = [arm for arm in task.arms if arm.arm not in ("base", "thinking")]
    axis = charts.gap_axis(ends)
    left_out = {f"{WITHOUT}{use.behavior}" for use in task.behaviors if use.left_out is not None}
    gaps = [(arm.arm, charts.gap_row(arm, axis), _short(arm.gap)) for arm in ends]
    return {
        "name": task.task,
        "figures": task,
        "rows": [row for row in cells.rows(task) if row[0] not in left_out],  # those are in the behaviors' table
        "tiles": _tiles(task),
        "notes": _notes(task, runs, held),
        "gaps": gaps if any(arm.gap is not None for arm in ends) else [],
        "gap_axis": charts.row_axis(axis),
        "accuracy": charts.accuracy_chart(task.arms),
        "left_out": bool(left_out),
        "arms": ",".join(arm.arm for arm in task.arms if not arm.arm.startswith(WITHOUT)),
    }


def _short(gap: Gap | None) -> str:
    """The text beside a gap's row; the table above has the interval, or why there is none."""
    if gap is None or gap.recovered is None:
        return "undefined"
    return f"{gap.recovered:+.1%}{'' if gap.reason is None else ', no interval'}"


def _tiles(task: TaskComparison) -> list[tuple[str, str]]:
    """The hybrid in a few large figures: (value, what it is)."""
    hybrid, base, thinking = (task.arm(name) for name in ("hybrid", "base", "thinking"))
    if hybrid is None:
        return []
    tiles = []
    if hybrid.gap is not None and hybrid.gap.recovered is not None:
        value, _, interval = cells.recovered(hybrid.gap).partition(" ")
        words = interval if hybrid.gap.reason else f"95%: {interval}"
        tiles.append((value, f"of the gap between base and thinking model is recovered; {words}"))
    if base is not None:
        beyond = "" if thinking is None else f"; thinking model: {thinking.accuracy.value:.1%}"
        values = f"{base.accuracy.value:.1%} → {hybrid.accuracy.value:.1%}"
        tiles.append((values, f"accuracy of the base → of the hybrid{beyond}"))
    if hybrid.steered is not None:
        changed = "" if hybrid.changed is None else f"; {hybrid.changed.tokens:.1%} differ from the base's own choice"
        tiles.append((f"{hybrid.steered.tokens:.1%}", f"of the hybrid's tokens are steered{changed}"))
    controls = [
        (arm.gap.recovered, arm.arm)
        for arm in task.arms
        if arm.arm not in CORE and not arm.arm.startswith(WITHOUT) and arm.gap and arm.gap.recovered is not None
    ]
    if controls:
        best, name = max(controls, key=lambda pair: pair[0])
        tiles.append((f"{best:+.1%}", f"of the gap is recovered by {name}, the strongest control"))
    return tiles


def _notes(task: TaskComparison, runs: dict[str, ArmRun], held: DocumentPack) -> list[str]:
    """What is missing, or needed to read the figures."""
    notes = []
    if task.missing:
        notes.append(f"Not run: {cells.listed(task.missing)}. Without these the gap is undefined.")
    if "hybrid" not in runs:
        notes.append("Not run: hybrid. So no arm is compared with it.")
    if bare := [arm for arm, run in runs.items() if run.sidecar is None]:
        notes.append(
            f"No token records (tokens_*.jsonl) of {cells.listed(bare)}: lengths are unknown, and no tokens are marked."
        )
    first, *others = runs.values()
    prompts = [document.prompt_hash for document in first.documents]
    if other := [run.arm for run in others if [document.prompt_hash for document in run.documents] != prompts]:
        notes.append(f"Prompts of {cells.listed(other)} differ from those of {first.arm}; the page shows the latter.")
    if held.left_out:
        parts = [f"{arm} ({count:,} of {task.documents:,} documents)" for arm, count in held.left_out]
        notes.append(
            f"Answers of {cells.listed(parts)} are left out to keep the page small; "
            "lm-eval-hybrid compare DIR --document ID shows any one answer of the hybrid."
        )
    return notes


def _blocks(held: DocumentPack) -> list[dict[str, Any]]:
    parts = [(held.index, True), *((block, False) for block in held.blocks)]
    return [
        {"name": block.name, "text": Markup(block.text), "index": index} for block, index in parts
    ]  # safe as markup: base64 only


def shade(colour: str, paper: str, strength: float) -> str:
    """A colour (`#rrggbb`) mixed with a page's background: the background at strength 0, the colour itself at 1."""
    parts = [(int(colour[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(strength * a + (1 - strength) * b):02x}" for a, b in parts)


def _style() -> str:
    light, dark = (
        "".join(f"--b{i}:{shade(colour, paper, strength)};" for i, colour in enumerate(PALETTE))
        for paper, strength in zip(PAPER, STRENGTH, strict=True)
    )
    grounds = "\n".join(f".b{i} {{ --b: var(--b{i}); }}" for i in range(len(PALETTE)))
    themes = (
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{grounds}\n"
    )
    return themes + page.sources(["page.css", "charts.css", "comparison.css"])


def _script() -> str:
    parts = page.sources(["comparison_list.js", "comparison_reader.js"])
    return f'(() => {{\n"use strict";\nconst COLOURS = {len(PALETTE)};\n{parts}}})();\n'
