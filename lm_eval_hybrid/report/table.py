"""The figures of all arms as a table for papers: Markdown, or LaTeX with booktabs."""

import re
from collections.abc import Sequence
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.report import figures, provenance
from lm_eval_hybrid.report.figures import COLUMNS
from lm_eval_hybrid.report.page import writable
from lm_eval_hybrid.results.comparison import TaskComparison
from lm_eval_hybrid.results.runs import Runs

_CAPTION = (
    "Accuracy with Wilson's 95% interval. Gap recovered: (arm - base) / (thinking - base), signed; it and differences "
    "with BCa intervals, paired over documents. Steered, changed: of the generated tokens. Length: tokens. "
    "p: McNemar's exact test, Holm's adjustment."
)
_LATEX = {
    **{c: f"\\{c}" for c in "{}$&#%_"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}


def check(path: Path) -> None:
    """That the file's ending names a kind of table.

    Raises:
        HybridError: it does not.
    """
    if path.suffix not in _MAKE:
        raise HybridError(f"--table needs a file that ends in .md or .tex; found {path.name}; name it so")


def write(runs: Runs, comparison: Sequence[TaskComparison], seed: int, path: Path) -> None:
    """Writes the table of all tasks, in the kind that the file's ending names, whole or not at all.

    Raises:
        HybridError: the ending names none.
    """
    check(path)
    facts = [f"{name}: {value}" for name, value in provenance.facts(runs, seed)]
    lines = _MAKE[path.suffix](comparison, facts)
    write_file(path, (writable("\n".join(lines)) + "\n").encode())


def markdown(comparison: Sequence[TaskComparison], facts: Sequence[str]) -> list[str]:
    """Lines of a table a task, and of what it rests on."""
    lines: list[str] = []
    for task in comparison:
        lines += [f"**{_plain(task.task)}**, {task.documents:,} documents", ""]
        lines += [_piped(COLUMNS), f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
        lines += [*(_piped([_plain(cell) for cell in row]) for row in figures.rows(task)), ""]
    return [*lines, _CAPTION, "", *(f"- {_plain(fact)}" for fact in facts)]


def latex(comparison: Sequence[TaskComparison], facts: Sequence[str]) -> list[str]:
    """Lines of a tabular, the tasks below one another; what it rests on is in comments."""
    comments = [f"% {_one_line(line)}" for line in (r"needs \usepackage{booktabs}", _CAPTION, *facts)]
    heads = [column.capitalize().replace("[95%]", "") for column in COLUMNS[:-1]]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}", r"\toprule"]
    lines.append(_row([*(_latex(head.strip()) for head in heads), "$p$ (Holm)"]))
    for task in comparison:
        head = rf"\textit{{{_latex(task.task)}}}, {task.documents:,} documents"
        lines += [r"\midrule", rf"\multicolumn{{{len(COLUMNS)}}}{{l}}{{{head}}} \\"]
        lines += [_row([_latex(row[0]), *map(_cell, row[1:])]) for row in figures.rows(task)]
    return [*comments, *lines, r"\bottomrule", r"\end{tabular}"]


_MAKE = {".md": markdown, ".tex": latex}


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Words that Markdown has nothing to make of."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", _one_line(text))


def _latex(text: str) -> str:
    """Words that LaTeX has nothing to make of."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def _cell(text: str) -> str:
    """A figure, its signs as mathematics has them."""
    if text == figures.ABSENT:
        return "--"
    signed = re.sub(r"(?<![\w.])([+-])(?=\d)|<(?=0\.)", lambda sign: f"\0{sign[0]}\0", text)
    return re.sub("\0(.)\0", r"$\1$", "".join(_LATEX.get(c, c) if c != "<" else c for c in signed))
