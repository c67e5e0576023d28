import json
from pathlib import Path

import pytest

from benchmarks.sweep import clusters, main, parsed


@pytest.mark.slow
def test_quick_run_measures_everything(tmp_path: Path) -> None:
    spent, ratio, best, agreed = main(["--quick", "--threads", "1", "--rounds", "1", "--out", str(tmp_path)])
    assert spent > 0 and ratio.median > 0
    assert best.method == "sae" and 0 < agreed < 1.001
    text = (tmp_path / "sweep.txt").read_text(encoding="utf-8")
    for row in ("2 sizes (5 to 8) x 2 seeds on 2,000 x 32", "one by one / in one stack", "chosen size", "mutual inf"):
        assert row in text
    content = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert [row["size"] for row in content["clusters"]] == [5, 8] * 3
    assert content["seconds"] == spent and content["embedded"]["ami"] == agreed


def test_rows_lie_in_clusters_off_the_origin() -> None:
    points = clusters(240, 16)
    assert points.shape == (240, 16) and points.mean() > 1
    centres = points.reshape(10, 24, 16).mean(0)
    within = (points.reshape(10, 24, 16) - centres).square().mean()
    assert 0.5 < within / centres.var(0).mean() < 2


@pytest.mark.parametrize("option", [["--rows", "0"], ["--traces", "5"], ["--rounds", "0"]])
def test_numbers_that_cannot_be_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(option)
