"""Final answers, as other modules use them: where they are found, and when two are equal."""

import json
from decimal import Decimal

import pytest

from lm_eval_hybrid.common.thoughts import after_thought, thought_is_open
from lm_eval_hybrid.scoring.metrics import is_right
from lm_eval_hybrid.scoring.reader.answers import final_answer, marked_answer, number, same_expression, same_number
from tests import shared_data

DATA = shared_data.DATA / "benchmarks"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 - 4 = 9, so 9 * 2 = 18.\n#### 18", "18"),
        (r"The answer is \boxed{31}.", "31"),
        (r"\boxed{3} first, then #### 4", "4"),
        (r"#### 4 first, then \boxed{3}", "3"),
        (r"\boxed{1} and at last \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} but cut off: \boxed{\frac{1}{", "1"),
        ("#### 5\n#### 6 crates", "6 crates"),
        ("#### \nso 7", "7"),
        ("We have 3 crates of 12, or $1,234.50 in all.", "$1,234.50"),
        ("from 10-4 it is 6.", "6"),
        ("it is -6.", "-6"),
        ("Seven.", None),
        ("", None),
    ],
)
def test_the_last_marked_answer_counts_else_the_last_number(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_reference_solution_has_its_answer_marked() -> None:
    assert marked_answer("2 * 9 = <<2*9=18>>18\n#### 18") == "18"
    assert marked_answer(r"so it is $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert marked_answer("so it is 5") is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("31", "31"),
        ("31.0", "31"),
        ("31.", "31"),
        ("$1,234.50", "1234.5"),
        (r"\$1{,}234", "1234"),
        (r"31\text{ dollars}", "31"),
        ("31 crates of 12", "31"),
        (r"40\%", "40"),
        ("-3", "-3"),
        (".5", "0.5"),
    ],
)
def test_a_number_is_read_through_its_typesetting(answer: str, value: str) -> None:
    assert number(answer) == Decimal(value)
    assert same_number(answer, value)


@pytest.mark.parametrize("answer", ["5x", "3/4", "x = 31", r"\frac{1}{2}", "5 + 3", "1,2", "many", "", r"2\pi"])
def test_an_expression_is_no_number(answer: str) -> None:
    assert number(answer) is None


@pytest.mark.parametrize("truth", ["5x", "x = 31", "5 + 3", "1,2", "many", "", r"2\pi"])
def test_nothing_is_the_same_number_as_an_expression(truth: str) -> None:
    assert not same_number(truth, truth)


def test_numbers_are_the_same_in_any_notation() -> None:
    assert same_number("3/4", "0.75")
    assert same_number("x = 31", "31")
    assert not same_number("31", "32")


def test_expressions_are_compared() -> None:
    assert same_expression("1+x", "x+1")
    assert not same_expression("1+x", "x+2")


def test_thoughts() -> None:
    assert thought_is_open("<think> 1 + 1")
    assert thought_is_open("<think>a</think> b <think> c")
    assert not thought_is_open("<think>a</think> 2")
    assert not thought_is_open("2")
    assert after_thought("<think> 5 </think> 2") == " 2"
    assert after_thought("2") == "2"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_the_reference_solutions_of_both_benchmarks_score() -> None:
    gsm8k = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(gsm8k) == 1319
    for row in gsm8k:
        truth = row["answer"].rpartition("####")[2].strip()
        assert is_right(row["answer"], truth, same_number, row["question"]), row
    math500 = [json.loads(line) for line in (DATA / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(math500) == 500
    # One solution ends in "so that number is the correct answer", after a box: the only one that this tells apart.
    assert not [row for row in math500 if not is_right(row["solution"], row["answer"], question=row["problem"])]
    # Each fifth answer against the next one: equal only where they really are, small numbers now and then.
    crossed = sum(same_expression(a["answer"], b["answer"]) for a, b in zip(math500[::5], math500[1::5], strict=True))
    assert crossed <= 4


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_most_solutions_are_read_without_their_marks() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()][::3]
    right = sum(
        is_right(row["answer"].partition("####")[0], marked_answer(row["answer"]), same_number, row["question"])
        for row in rows
    )
    assert right / len(rows) >= 0.93
