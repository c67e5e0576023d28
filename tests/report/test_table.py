import re
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.report import cells
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.outputs import read
from tests.results.outputs import PLAIN, samples
from tests.results.outputs import write as write_run

SCORES = {
    "base": [1] * 30 + [0] * 70,
    "hybrid": [1] * 85 + [0] * 15,
    "thinking": [1] * 95 + [0] * 5,
    "random-category": [1] * 10 + [0] * 90,
}


def written(folder: Path, name: str, seed: int = 0) -> str:
    runs = read(folder / "runs")
    cells.write(runs, compare(runs, seed), seed, folder / "deep" / name)
    return (folder / "deep" / name).read_text(encoding="utf-8")


def four(folder: Path) -> None:
    for arm, scores in SCORES.items():
        write_run(folder / "runs", arm, {"toy_task": samples(scores)}, tokens=[PLAIN] * 100)
    write_run(folder / "runs", "hybrid", {"other": samples([1])})


def test_markdown_has_a_table_for_each_task(tmp_path: Path) -> None:
    four(tmp_path)
    lines = written(tmp_path, "table.md", seed=3).splitlines()
    start = lines.index(r"**toy\_task**, 100 documents")
    heads, rule, *rows = lines[start + 2 : start + 8]
    assert heads == f"| {' | '.join(cells.COLUMNS)} |" and rule.count("|") == heads.count("|")
    want = cells.rows(compare(read(tmp_path / "runs"), 3)[1])
    texts = [[re.sub(r"\\(.)", r"\1", cell) for cell in re.split(r" \| ", row.strip("| "))] for row in rows]
    assert [tuple(row) for row in texts] == want and len(want) == 4
    assert "**other**, 1 documents" in lines
    assert "- seeds: decoding 7; bootstrap 3 (10,000 resamples)" in lines


def test_latex_is_a_booktabs_tabular(tmp_path: Path) -> None:
    four(tmp_path)
    text = written(tmp_path, "table.tex")
    code = [line for line in text.splitlines() if not line.startswith("%")]
    assert code[:2] == [r"\begin{tabular}{lrrrrrrrrr}", r"\toprule"]
    assert code[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in code if "&" in line]
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {10} and all(row.endswith(r" \\") for row in rows)
    assert r"\multicolumn{10}{l}{\textit{toy\_task}, 100 documents} \\" in code
    (task,) = (task for task in compare(read(tmp_path / "runs")) if task.task == "toy_task")
    harm = task.arm("random-category")
    low, high = -100 * harm.gap.low, -100 * harm.gap.high
    texts = [cell.strip() for cell in next(row for row in rows if row.startswith("random-category")).split("&")]
    assert texts[1:4] == [r"10.0\% [5.5, 17.4]", rf"$-$30.8\% [$-${low:.1f}, $-${high:.1f}]", r"0.0\%"]
    assert texts[9] == r"$<$0.001 \\" and texts[7] == "--"
    assert "% bundle: embedded@1.0.0#0123456789ab" in text.splitlines()


@pytest.mark.parametrize("name", ["table.md", "table.tex"])
def test_cells_of_undefined_gaps_give_the_reason(tmp_path: Path, name: str) -> None:
    for arm in ("base", "hybrid", "thinking"):
        write_run(tmp_path / "runs", arm, {"toy": samples([1, 0])})
    assert " undefined: thinking is not above base " in written(tmp_path, name)


NAME = r"a|b&c_d$e%f#g{h}i\j^k~l<m>n`o*p[q]" + "\nr\x00\u2028"


def test_names_are_escaped_in_latex(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "hybrid", {"toy": samples([1])}, hybrid_without=[NAME])
    write_run(tmp_path / "runs", "hybrid", {"toy": samples([1])}, hybrid_bundle=NAME)
    text = written(tmp_path, "table.tex")
    row = next(line for line in text.splitlines() if line.startswith("without"))
    assert row.startswith(
        r"without a\textbar{}b\&c\_d\$e\%f\#g\{h\}i\textbackslash{}j\textasciicircum{}k\textasciitilde{}l\textless{}m"
        r"\textgreater{}n`o*p[q] r" + "\ufffd &"
    )
    comments = [line for line in text.split("\n") if "bundle" in line]
    assert len(comments) == 1 and comments[0].startswith("% bundle: a|b&c")


def test_names_are_escaped_in_markdown(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "hybrid", {"toy": samples([1])}, hybrid_without=[NAME])
    write_run(tmp_path / "runs", "hybrid", {"toy": samples([1])})
    row = next(line for line in written(tmp_path, "table.md").split("\n") if line.startswith("| without"))
    assert len(re.split(r"(?<!\\)\|", row)) == 12
    cell = re.split(r"(?<!\\)\|", row)[1].strip()
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", "", cell)
    assert not set(plain) & set("|&_$#{}\\~<>`*[]")
    assert re.sub(r"\\(.)", r"\1", cell) == "without " + NAME.replace("\n", " ").replace("\x00\u2028", "\ufffd")


@pytest.mark.parametrize("name", ["table.csv", "table", "table.MD"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(HybridError, match=re.escape(f"{name} has no known ending")):
        cells.check(Path(name))
