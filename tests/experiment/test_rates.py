"""Rates: what a batch's work is, and what it costs."""

import json
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.estimate import rates
from lm_eval_hybrid.experiment.estimate.rates import Rate, Work


@pytest.mark.parametrize(
    ("lengths", "slots", "expected"),
    [
        ([3, 2, 4], 1, [Work(1, 3, 3), Work(2, 5, 5), Work(3, 9, 9)]),
        ([3, 2, 4], 8, [Work(3, 2, 6), Work(3, 3, 8), Work(3, 4, 9)]),
        # The third begins when the second ends, after two steps.
        ([3, 2, 4], 2, [Work(2, 2, 4), Work(3, 3, 6), Work(3, 6, 9)]),
        ([], 4, []),
    ],
)
def test_work_as_answers_end(lengths: list[int], slots: int, expected: list[Work]) -> None:
    assert list(rates.progress(lengths, slots)) == expected


def test_answers_without_a_token_are_work_all_the_same() -> None:
    assert rates.work([0, 0, 0], 2) == Work(3, 0, 0)


def test_a_rate_is_found_again() -> None:
    true = Rate(0.5, 0.02, 0.001, {}, 4)
    lengths = [30, 50, 20, 90, 10, 40, 60, 25]
    ends = [true.seconds(work) for work in rates.progress(lengths, 4)]
    found = rates.fitted(lengths, 4, ends, {"base": 280})
    assert (found.document, found.step, found.token) == pytest.approx((0.5, 0.02, 0.001), rel=1e-6)
    assert found.requests["base"] * rates.work(lengths, 4).steps == pytest.approx(280)
    # A larger run of the same kind: its batch is full for longer.
    many = lengths * 10
    assert found.seconds(rates.work(many, 4)) == pytest.approx(true.seconds(rates.work(many, 4)), rel=1e-6)


def test_a_rate_adds_up_to_what_was_measured() -> None:
    lengths, ends = [5, 9, 3], [2.0, 1.0, 7.0]
    assert rates.fitted(lengths, 2, ends, {}).seconds(rates.work(lengths, 2)) == pytest.approx(7.0)


def results(folder: Path, arm: str, task: str, date: str, lengths: list[int] | None = None, **config: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    totals = {"requests": 3, "tokens": 60, "seconds": 12.0}
    content = {"config": {"hybrid_arm": arm, "hybrid_totals": totals, **config}, "configs": {task: {}}}
    (folder / f"results_{date}.json").write_text(json.dumps(content))
    lines = [
        {"schema_version": 2, "prompt": "x" * i, "records": [{}] * length} for i, length in enumerate(lengths or [])
    ]
    if lines:
        (folder / f"tokens_{task}_{date}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_former_runs_are_read(tmp_path: Path) -> None:
    results(tmp_path / "a", "base", "one", "2026-01-01", [10, 20, 30], hybrid_requests={"m": {"requests": 30}})
    results(tmp_path / "b", "hybrid", "one", "2026-01-01", batch_size="2", hybrid_without=["plan", "check"])
    (tmp_path / "results_other.json").write_text("{}")
    found = rates.read(tmp_path)
    # The longest prompt's first; without token records the mean.
    assert found.lengths == {("base", "one"): (30, 20, 10), ("without plan, check", "one"): (20,)}
    assert found.rates["base"] == Rate(0.0, 12.0 / 60, 0.0, {"m": 30 / 60}, 1)
    assert found.rates["without plan, check"].slots == 2


def test_the_newest_run_counts(tmp_path: Path) -> None:
    results(tmp_path / "b", "base", "one", "2026-01-01", [10])
    results(tmp_path / "a", "base", "one", "2026-01-02", [20])
    assert rates.read(tmp_path).lengths["base", "one"] == (20,)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="--from needs results of model hybrid"):
        rates.read(tmp_path)
