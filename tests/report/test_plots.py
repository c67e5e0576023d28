import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from lm_eval_hybrid.report.charts import write_plots
from lm_eval_hybrid.results.comparison import TaskComparison, compare
from lm_eval_hybrid.results.outputs import read
from tests.results.outputs import PLAIN, STEERED, samples
from tests.results.outputs import write as write_run

SCORES = {
    "base": [1] * 30 + [0] * 70,
    "hybrid": [1] * 85 + [0] * 15,
    "thinking": [1] * 95 + [0] * 5,
    "random-category": [1] * 10 + [0] * 90,
}
Image = pytest.importorskip("PIL.Image", reason="reading PNG needs pillow")
pytest.importorskip("vl_convert", reason="plots need vl-convert")


def compared(folder: Path, task: str = "toy") -> tuple[TaskComparison, ...]:
    for arm, scores in SCORES.items():
        write_run(folder, arm, {task: samples(scores)}, tokens=[STEERED if arm == "hybrid" else PLAIN] * 100)
    write_run(folder, "hybrid", {task: samples(SCORES["base"])}, tokens=[PLAIN] * 100, hybrid_without=["check"])
    return compare(read(folder))


def words(path: Path) -> list[str]:
    """The texts of an SVG file."""
    root = ElementTree.parse(path).getroot()
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_task_has_its_plots_in_both_kinds(tmp_path: Path) -> None:
    found = compared(tmp_path / "runs")
    written = write_plots(found, tmp_path / "deep" / "plots")
    names = [f"{plot}-toy.{kind}" for plot in ("gap", "accuracy", "behaviors") for kind in ("png", "svg")]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "deep" / "plots").iterdir()) == sorted(names)
    for path in written:
        if path.suffix == ".png":
            picture = np.asarray(Image.open(path).convert("L"))
            assert picture.shape[0] > 300 and picture.shape[1] > 1000
            assert 0.002 < (picture < 150).mean() < 0.5  # a drawing on a white ground


def test_plots_show_the_figures_of_the_comparison(tmp_path: Path) -> None:
    found = compared(tmp_path / "runs")
    write_plots(found, tmp_path)
    gap = found[0].arm("random-category").gap
    said = words(tmp_path / "gap-toy.svg")
    assert "toy, 100 documents" in said
    shown = f"{gap.recovered:+.1%} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    assert shown.replace("-", "\N{MINUS SIGN}") in said and "random-category" in said and "thinking" not in said
    said = words(tmp_path / "accuracy-toy.svg")
    assert {"base", "hybrid", "random-category", "thinking model"} <= set(said) and "without check" not in said
    said = words(tmp_path / "behaviors-toy.svg")
    assert "66.7%" in said and any(word.startswith("33.3%; +55.0 [+") for word in said)
    assert any(word.startswith("share of steered tokens; then points of accuracy lost") for word in said)


def test_the_same_figures_make_the_same_bytes(tmp_path: Path) -> None:
    found = compared(tmp_path / "runs")
    one, two = write_plots(found, tmp_path / "one"), write_plots(found, tmp_path / "two")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_names_of_tasks_and_behaviors_are_escaped_and_stay_in_the_folder(tmp_path: Path) -> None:
    for name in (r"$\frac{1}$", "<script>&"):
        tokens = [((" a", name, True),)] * 2
        made = samples([1, 0], filters=("../up $x$", "up#x#"))
        write_run(tmp_path / "runs", "hybrid", {"t": made}, tokens=tokens, hybrid_without=[name])
        write_run(tmp_path / "runs", "hybrid", {"t": made}, tokens=tokens)
    written = write_plots(compare(read(tmp_path / "runs")), tmp_path / "plots")
    assert {path.parent for path in written} == {tmp_path / "plots"} and len(set(written)) == len(written) == 8
    assert r"behaviors-t-up-x--1.svg" in [path.name for path in written]
    said = words(tmp_path / "plots" / "behaviors-t-up-x--1.svg")
    assert "<script>&" in said and r"$\frac{1}$" in said and "t:../up $x$: behaviors used" in said


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "hybrid", {"toy": samples([1])})
    assert write_plots(compare(read(tmp_path / "runs")), tmp_path) == []
    for arm, scores in {"base": [0, 0, 1, 0], "hybrid": [1, 0, 1, 0], "thinking": [1, 1, 0, 0]}.items():
        write_run(tmp_path / "few", arm, {"few": samples(scores)})
    assert [path.name for path in write_plots(compare(read(tmp_path / "few")), tmp_path)] == [
        "gap-few.png",
        "gap-few.svg",
    ]
    assert any("no interval: thinking is not above base" in word for word in words(tmp_path / "gap-few.svg"))
