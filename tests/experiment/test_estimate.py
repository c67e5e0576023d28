"""Estimates: figures, and where each comes from."""

import pytest

from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.timing import Measured, Rate, estimate, longest

ONE = TaskRequests("one", 4, (), (9, 8, 5, 5), 100)
TWO = TaskRequests("two", 2, (), (7, 6), 50)
CHOICES = TaskRequests("choices", 2, (), (7, 7, 6, 6), 0)
MEASURED = Measured({("base", "one"): (40, 20)}, {"base": Rate(0.0, 0.1, 0.01, {"m": 0.5})}, "a run")


def test_without_measurement_tokens_are_a_bound_and_time_is_unknown() -> None:
    (arm,) = estimate(["base"], [ONE, TWO, CHOICES], 1, None)
    assert [(each.task, each.total) for each in arm.tasks] == [("one", 400), ("two", 100)]
    assert {each.origin for each in arm.tasks} == {"at most: max_gen_toks"}
    assert (arm.tokens, arm.seconds, arm.requests) == (500, None, {})
    assert estimate(["base"], [ONE], 1, None, remote=True)[0].requests is None
    assert longest([arm], [ONE, TWO, CHOICES]) == 109


def test_what_was_measured_is_spread_over_the_documents() -> None:
    (arm,) = estimate(["base"], [ONE], 1, MEASURED)
    assert arm.tasks[0].lengths == (40, 40, 20, 20)
    assert arm.tasks[0].origin == "measured: a run"
    assert arm.seconds == pytest.approx(120 * 0.11)
    assert arm.requests == {"m": 60}


def test_another_task_stands_in_and_is_named() -> None:
    arm, unknown = estimate(["base", "hybrid"], [ONE, TWO], 1, MEASURED)
    assert arm.tasks[1].origin == "assumed: as in one"
    assert arm.tasks[1].lengths == (40, 20)
    assert unknown.seconds is None and unknown.tokens == 500
    assert longest([arm], [TWO]) == 47
    assert longest([unknown, arm], [TWO]) == longest([arm, unknown], [TWO]) == 57


def test_an_answer_that_is_assumed_is_no_longer_than_allowed() -> None:
    (arm,) = estimate(["base"], [TaskRequests("short", 2, (), (3, 3), 25)], 1, MEASURED)
    assert arm.tasks[0].lengths == (25, 20)


def test_of_a_server_a_run_without_one_tells_no_requests() -> None:
    here = Measured(MEASURED.lengths, {"base": Rate(0.0, 0.1, 0.0, {})}, "a run")
    assert estimate(["base"], [ONE], 1, here)[0].requests == {}
    assert estimate(["base"], [ONE], 1, here, remote=True)[0].requests is None


def test_tasks_are_answered_together_the_longest_prompts_first() -> None:
    # 9, 8 of one, 7, 6 of two, 5, 5 of one: 40 and 40, 40 and 20, 20 and 20, two at once.
    (arm,) = estimate(["base"], [ONE, TWO], 2, Measured(MEASURED.lengths, {"base": Rate(0, 1, 0, {})}, "a run"))
    assert arm.seconds == 40 + 40 + 20
