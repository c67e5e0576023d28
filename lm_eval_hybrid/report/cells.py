"""The figures of a comparison as text: cells that all tables share, and tables for papers (Markdown, LaTeX)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.errors import HybridError, writable
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import cells
from lm_eval_hybrid.results.comparison import ArmFigures, Share, TaskComparison
from lm_eval_hybrid.results.runs import SETTINGS, WITHOUT, Runs
from lm_eval_hybrid.results.statistics import RESAMPLES, Accuracy, Gap, PairedDifference

ABSENT = "-"
COLUMNS = (
    "arm",
    "accuracy [95%]",
    "gap recovered [95%]",
    "steered",
    "changed",
    "mean length",
    "truncated",
    "unfinished",
    "hybrid minus arm [95%]",
    "p (Holm)",
)
PACKAGES = ("lm_eval_hybrid", "lm_eval", "torch", "transformers", "nnsight")


def rows(task: TaskComparison) -> list[tuple[str, ...]]:
    """One row for each arm, one cell for each of `COLUMNS`."""
    return [_row(arm, task.missing) for arm in task.arms]


def _row(arm: ArmFigures, missing: tuple[str, ...]) -> tuple[str, ...]:
    against = arm.against
    return (
        arm.arm,
        accuracy(arm.accuracy),
        gap(arm, missing),
        share(arm.steered),
        share(arm.changed),
        ABSENT if arm.length is None else count(arm.length.mean),
        ABSENT if arm.truncated is None else f"{arm.truncated:,}",
        ABSENT if arm.unfinished is None else f"{arm.unfinished:,}",
        ABSENT if against is None else difference(against.difference),
        ABSENT if against is None else p_value(against.holm),
    )


def accuracy(value: Accuracy) -> str:
    """`95.5% [91.7, 97.6]`."""
    return f"{value.value:.1%} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def gap(arm: ArmFigures, missing: tuple[str, ...]) -> str:
    """`+96.0% [+92.6, +98.7]`, or why the gap is undefined; base and thinking, its two ends, have none."""
    if arm.arm in ("base", "thinking"):
        return ABSENT
    if arm.gap is None:
        return f"undefined: {listed(missing)} {'was' if len(missing) == 1 else 'were'} not run"
    return recovered(arm.gap)


def recovered(value: Gap) -> str:
    """`+96.0% [+92.6, +98.7]`, or why the gap or its interval is undefined."""
    if value.recovered is None:
        return f"undefined: {value.reason}"
    if value.low is None or value.high is None:
        return f"{value.recovered:+.1%} {value.reason}"
    return f"{value.recovered:+.1%} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def difference(value: PairedDifference) -> str:
    """In percentage points of accuracy: `+12.0 [+4.5, +19.5]`."""
    return f"{points(value.value)} [{points(value.low)}, {points(value.high)}]"


def points(value: float) -> str:
    """A difference of shares in percentage points: `+12.3`."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # the sum makes -0.0 into 0.0


def p_value(p: float) -> str:
    """With 3 decimals, or `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(value: Share | None) -> str:
    """Of the generated tokens: `6.3%`."""
    return percent(None if value is None else value.tokens)


def percent(value: float | None) -> str:
    """A share: `6.3%`."""
    return ABSENT if value is None else f"{value:.1%}"


def count(value: float) -> str:
    """A mean number of tokens, or tokens per second, with about 3 digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def signed(text: str) -> str:
    """A cell with the characters of good typography: minus signs, and a dash for what is absent."""
    if text == ABSENT:
        return "\N{EN DASH}"
    return re.sub(r"(?<![\w.])-(?=[\d.])", "\N{MINUS SIGN}", text)


def provenance(runs: Runs, seed: int) -> list[tuple[str, str]]:
    """(name, value) of what produced a comparison, as far as the runs recorded it; runs that differ are all named.

    Args:
        seed: of the bootstrap.
    """
    versions = [f"{name} {_all(run.versions.get(name, 'not recorded') for run in runs.runs)}" for name in PACKAGES]
    names = [name for name in SETTINGS if any(name in run.settings for run in runs.runs)]
    settings = [f"{name} {_all(run.settings.get(name) for run in runs.runs)}" for name in names]
    return [
        # The bundle of an arm that leaves out a behavior says so, too; the arm's name is enough.
        ("bundle", _all(run.bundle or "not recorded" for run in runs.runs if not run.arm.startswith(WITHOUT))),
        ("models", f"base {_all(run.base for run in runs.runs)}; thinking {_all(run.thinking for run in runs.runs)}"),
        ("steering (unless the arm sets it)", ", ".join(settings) or "not recorded"),
        ("seeds", f"decoding {_all(str(run.seed) for run in runs.runs)}; bootstrap {seed} ({RESAMPLES:,} resamples)"),
        ("versions", ", ".join(versions)),
    ]


def _all(values: Iterable[str | None]) -> str:
    """The value that all runs share, else every value; None does not count."""
    different = sorted({value for value in values if value is not None}) or ["not recorded"]
    return different[0] if len(different) == 1 else f"{' and '.join(different)} (runs differ)"


def hardware(recorded: Any) -> list[tuple[str, str]]:
    """The hardware recorded in a gap.json as one (name, value); empty where there is none."""
    if not isinstance(recorded, Mapping):
        return []
    named = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in recorded.items()}
    words = [f"{name} {value}" for name, value in named.items() if value not in ("", None)]
    return [("hardware", "; ".join(words))] if words else []


_CAPTION = (
    "Accuracy with Wilson's 95% interval. Gap recovered: (arm - base) / (thinking - base), signed; it and the "
    "differences have BCa intervals, paired over documents. Steered, changed: shares of the generated tokens. "
    "Length: tokens. p: McNemar's exact test, adjusted by Holm's method."
)
_LATEX = {
    **{c: f"\\{c}" for c in "{}$&#%_"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}


def check(path: Path) -> None:
    """Check that the file's ending names a format.

    Raises:
        HybridError: it does not.
    """
    if path.suffix not in _FORMATS:
        raise HybridError(f"{path.name} has no known ending; --table needs a file that ends in .md or .tex; rename it")


def write(runs: Runs, comparison: Sequence[TaskComparison], seed: int, path: Path) -> None:
    """Write the table of all tasks in the format that the file's ending names, whole or not at all.

    Raises:
        HybridError: the ending names no format.
    """
    check(path)
    facts = [f"{name}: {value}" for name, value in cells.provenance(runs, seed)]
    lines = _FORMATS[path.suffix](comparison, facts)
    write_file(path, (writable("\n".join(lines)) + "\n").encode())


def _markdown(comparison: Sequence[TaskComparison], facts: Sequence[str]) -> list[str]:
    """A table for each task, and the provenance."""
    lines: list[str] = []
    for task in comparison:
        lines += [f"**{_in_markdown(task.task)}**, {task.documents:,} documents", ""]
        lines += [_piped(COLUMNS), f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
        lines += [*(_piped([_in_markdown(cell) for cell in row]) for row in cells.rows(task)), ""]
    return [*lines, _CAPTION, "", *(f"- {_in_markdown(fact)}" for fact in facts)]


def _latex(comparison: Sequence[TaskComparison], facts: Sequence[str]) -> list[str]:
    """One tabular with the tasks below one another; the provenance is in comments."""
    comments = [f"% {_one_line(line)}" for line in (r"needs \usepackage{booktabs}", _CAPTION, *facts)]
    heads = [column.capitalize().replace("[95%]", "") for column in COLUMNS[:-1]]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}", r"\toprule"]
    lines.append(_table_row([*(_in_latex(head.strip()) for head in heads), "$p$ (Holm)"]))
    for task in comparison:
        head = rf"\textit{{{_in_latex(task.task)}}}, {task.documents:,} documents"
        lines += [r"\midrule", rf"\multicolumn{{{len(COLUMNS)}}}{{l}}{{{head}}} \\"]
        lines += [_table_row([_in_latex(row[0]), *map(_number, row[1:])]) for row in cells.rows(task)]
    return [*comments, *lines, r"\bottomrule", r"\end{tabular}"]


_FORMATS = {".md": _markdown, ".tex": _latex}


def _piped(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _table_row(row: Sequence[str]) -> str:
    return " & ".join(row) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _in_markdown(text: str) -> str:
    """The text with everything escaped that means something in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", _one_line(text))


def _in_latex(text: str) -> str:
    """The text with everything escaped that means something in LaTeX."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def _number(text: str) -> str:
    """A figure with its signs in math mode."""
    if text == cells.ABSENT:
        return "--"
    signed = re.sub(r"(?<![\w.])([+-])(?=\d)|<(?=0\.)", lambda sign: f"\0{sign[0]}\0", text)
    return re.sub("\0(.)\0", r"$\1$", "".join(_LATEX.get(c, c) if c != "<" else c for c in signed))
