import json
from pathlib import Path

import pytest

from benchmarks.clock import Ratio, take_turns
from benchmarks.engine import main, parsed
from benchmarks.naive import NaiveCost
from benchmarks.problems import problem_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
def test_quick_run_measures_everything_and_all_ways_write_the_same(folder: Path) -> None:
    (result,) = main(["--quick", "--threads", "1", "--out", str(folder)])
    assert [contest.batch for contest in result.contests] == [1, 3]
    for contest in result.contests:
        assert contest.same["lockstep", 8] == contest.same["lockstep", 24] == (contest.batch, contest.batch)
        assert all(seconds > 0 for rounds in contest.seconds.values() for seconds in rounds)
        assert 0 < contest.steered[24] < 0.5
    assert result.contests[0].same["naive", 8] == (1, 1)
    text = (folder / "engine.txt").read_text(encoding="utf-8")
    for row in (
        "naive loop ",
        "naive loop, run whole",
        "lockstep",
        "ours ",
        "base alone",
        "thinking alone",
        "ours / (base + thinking / 4)",
        "ours a token / at the shortest",
        "peak memory",
        "share of tokens steered",
        "same answers",
        "a cached step",
        "all candidates",
        "window of all positions",
    ):
        assert row in text, row
    written = json.loads((folder / "engine.json").read_text())
    lengths = written["pairs"][0]["contests"][0]["lengths"]
    assert [length["tokens"] for length in lengths] == [8, 24]
    assert set(lengths[0]["seconds"]) == {"lockstep", "ours", "base", "thinking", "naive"}


def test_turns_go_to_and_fro_and_end_with_the_budget() -> None:
    order: list[str] = []
    seconds, results = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 7}, 2)
    assert order == ["a", "b", "b", "a"]
    assert results == {"a": None, "b": 7}
    assert [len(spent) for spent in seconds.values()] == [2, 2]
    assert len(take_turns({"a": lambda: None}, 5, budget=0.0)[0]["a"]) == 1


def test_a_ratio_is_taken_round_by_round() -> None:
    ratio = Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 3.0)
    assert str(ratio) == "2.00 [1.00, 3.00]"
    assert str(Ratio.of([20.0], [1.0])) == "20.0"


def test_the_naive_cost_is_linear_between_samples_and_beyond() -> None:
    cost = NaiveCost([10, 20, 40], shut=[1.0, 2.0, 3.0], opened=[10.0, 20.0, 30.0])
    assert cost.run(10, [False]) == 1.0
    assert cost.run(14, [False, True]) == pytest.approx(1.4 + 15.0)
    assert cost.run(30, [True]) == pytest.approx(25.0)
    assert cost.run(60, [False]) == pytest.approx(4.0)


def test_problems_differ_in_text_and_length() -> None:
    texts = problem_texts(32)
    assert len(set(texts)) == 32
    assert len({len(text) for text in texts}) > 16


def test_options_that_cannot_be_are_refused() -> None:
    for arguments in (["--batches", "33"], ["--lengths", "0"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            parsed(arguments)
