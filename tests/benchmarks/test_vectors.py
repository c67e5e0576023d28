import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.vectors import PROMPT, SENTENCE, WAYS, Work, backend_of, epochs, main, parsed, random_work


@pytest.mark.slow
def test_quick_run_measures_everything(tmp_path: Path) -> None:
    costs = main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert [cost.work.model for cost in costs] == ["random", "embedded"]
    for cost in costs:
        assert set(cost.seconds) == set(WAYS)
        assert all(spent > 0 for some in cost.seconds.values() for spent in some)
        assert cost.difference < 1e-3
    text = (tmp_path / "vectors.txt").read_text(encoding="utf-8")
    for row in (
        "random, layer 2",
        "embedded, layer ",
        "time: naive / ours, first epoch",
        "time: hook / ours, later epochs",
        "peak memory: naive / ours",
        "gradient: largest difference",
    ):
        assert row in text, row
    written = json.loads((tmp_path / "vectors.json").read_text(encoding="utf-8"))
    assert [cost["losses"] for cost in written["costs"]] == [cost.losses for cost in costs]


def test_every_way_finds_the_same_loss_and_gradient() -> None:
    rows, segments = random_work(1, PROMPT + 2 * SENTENCE)
    segments = [replace(segment, category=i) for i, segment in enumerate(segments)]
    found = {way: run() for way, run in epochs(backend_of("random"), Work("random", 2, rows, segments)).items()}
    loss, gradient = found["naive"]
    assert gradient[: len(segments)].any(-1).all() and not gradient[len(segments) :].any()
    for way in WAYS:
        assert found[way][0] == pytest.approx(loss, rel=1e-4)
        torch.testing.assert_close(found[way][1], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_sentences_lie_side_by_side_behind_the_prompt() -> None:
    rows, segments = random_work(2, PROMPT + 3 * SENTENCE)
    assert [(s.row, s.begin, s.end) for s in segments[:3]] == [(0, 31, 47), (0, 47, 63), (0, 63, 79)]
    assert len(segments) == 6 and all(s.targets == rows[s.row][s.begin + 1 : s.end + 1] for s in segments)


@pytest.mark.parametrize("option", [["--traces", "0"], ["--length", "40"], ["--rounds", "0"], ["--length", "9999"]])
def test_numbers_that_cannot_be_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(option)
