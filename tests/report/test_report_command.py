import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_hybrid.commands import report
from lm_eval_hybrid.commands.main import main
from tests.results.outputs import PLAIN, STEERED, samples, write


def three(folder: Path) -> None:
    for arm, scores in (("base", [1, 0, 0]), ("hybrid", [1, 1, 0]), ("thinking", [1, 1, 1])):
        write(folder, arm, {"toy": samples(scores)}, tokens=[STEERED if arm == "hybrid" else PLAIN] * 3)


def test_a_page_is_written_beside_the_runs(tmp_path: Path) -> None:
    three(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Made with" not in page
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]
    (tmp_path / "gap.json").write_text(json.dumps({"command": "lm-eval-hybrid run --out x"}))
    assert main(["report", str(tmp_path)]) == 0  # the page itself is no run
    assert "lm-eval-hybrid run --out x" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_plots_and_table_are_written_where_the_flags_say(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="plots need vl-convert")
    three(tmp_path / "runs")
    out, plots, table = tmp_path / "a" / "page.html", tmp_path / "plots", tmp_path / "table.tex"
    asked = ["--out", str(out), "--plots", str(plots), "--table", str(table), "--seed", "5"]
    assert main(["report", str(tmp_path / "runs"), *asked]) == 0
    assert "bootstrap 5 (10,000 resamples)" in out.read_text(encoding="utf-8")
    assert "bootstrap 5 (10,000 resamples)" in table.read_text(encoding="utf-8")
    assert len(list(plots.iterdir())) == 6 and not (tmp_path / "runs" / "report.html").exists()


@pytest.mark.parametrize("content", ["no JSON", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_broken_gap_file_is_refused(tmp_path: Path, content: str | bytes, capsys: pytest.CaptureFixture) -> None:
    three(tmp_path)
    (tmp_path / "gap.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(tmp_path)]) == 2
    assert "gap.json is not a gap.json as run writes it" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_mistakes_are_reported_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path), "--table", "x.csv"]) == 2
    assert "x.csv has no known ending" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "has no results of model hybrid" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--seed", "-1"])
    assert "-1 is negative; a seed is 0 or more" in capsys.readouterr().err


def test_without_vl_convert_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main(["report", str(tmp_path), "--plots", str(tmp_path)]) == 2
    assert "--plots needs it; pip install 'lm-eval-hybrid[plots]'" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    heavy = ("jinja2", "lm_eval", "numpy", "rich", "torch", "vl_convert")
    code = (
        "import sys, lm_eval_hybrid.commands.main as cli\n"
        "try: cli.main(['report', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not [name for name in {heavy} if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--plots DIR" in done.stdout, done.stderr
