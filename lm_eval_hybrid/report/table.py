"""The figures of all arms as a table for papers: Markdown, or LaTeX with booktabs."""

import re
from collections.abc import Sequence
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.common.text import writable
from lm_eval_hybrid.report import cells
from lm_eval_hybrid.report.cells import COLUMNS
from lm_eval_hybrid.results.comparison import TaskComparison
from lm_eval_hybrid.results.runs import Runs

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
    lines.append(_row([*(_in_latex(head.strip()) for head in heads), "$p$ (Holm)"]))
    for task in comparison:
        head = rf"\textit{{{_in_latex(task.task)}}}, {task.documents:,} documents"
        lines += [r"\midrule", rf"\multicolumn{{{len(COLUMNS)}}}{{l}}{{{head}}} \\"]
        lines += [_row([_in_latex(row[0]), *map(_number, row[1:])]) for row in cells.rows(task)]
    return [*comments, *lines, r"\bottomrule", r"\end{tabular}"]


_FORMATS = {".md": _markdown, ".tex": _latex}


def _piped(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _row(row: Sequence[str]) -> str:
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
