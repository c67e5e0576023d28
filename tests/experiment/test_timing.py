"""The work of a batch, and its rate."""

from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.estimate import timing
from lm_eval_hybrid.experiment.estimate.timing import Rate, Work, read_former
from tests.results.outputs import PLAIN, STEERED, samples, write


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
    assert list(timing.progress(lengths, slots)) == expected


def test_answers_without_a_token_are_work_all_the_same() -> None:
    assert timing.total_work([0, 0, 0], 2) == Work(3, 0, 0)


def test_a_rate_is_found_again() -> None:
    true = Rate(0.5, 0.02, 0.001, {})
    lengths = [30, 50, 20, 90, 10, 40, 60, 25]
    ends = [true.seconds(work) for work in timing.progress(lengths, 4)]
    found = timing.fitted_rate(lengths, 4, ends, {"base": 280})
    assert (found.document, found.step, found.token) == pytest.approx((0.5, 0.02, 0.001), rel=1e-6)
    assert found.requests["base"] * timing.total_work(lengths, 4).steps == pytest.approx(280)
    # A larger run of the same kind: its batch is full for longer.
    many = lengths * 10
    assert found.seconds(timing.total_work(many, 4)) == pytest.approx(
        true.seconds(timing.total_work(many, 4)), rel=1e-6
    )


def test_a_rate_adds_up_to_what_was_measured() -> None:
    lengths, ends = [5, 9, 3], [2.0, 1.0, 7.0]
    assert timing.fitted_rate(lengths, 2, ends, {}).seconds(timing.total_work(lengths, 2)) == pytest.approx(7.0)


def test_former_runs_are_read(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0])}, tokens=[PLAIN, STEERED])
    write(tmp_path, "hybrid", {"toy": samples([1, 0])}, hybrid_totals={"tokens_per_second": None})
    former = read_former(tmp_path)
    assert former.lengths == {("base", "toy"): (3, 6)}
    assert former.rates == {"base": Rate(0.0, 0.0, 1 / 200, {})}
    with pytest.raises(HybridError, match="has no results of model hybrid"):
        read_former(tmp_path / "nowhere")
