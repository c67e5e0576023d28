"""Final answers: where they are found, and when two are equal."""

import json
import threading
from decimal import Decimal

import pytest

from lm_eval_hybrid.evaluation.answers import (
    after_thought,
    final_answer,
    number,
    same_expression,
    same_number,
    thought_is_open,
)
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


@pytest.mark.parametrize("answer", ["5x", "3/4", "x = 31", r"\frac{1}{2}", "5 + 3", "1,2", "many", "", r"2\pi"])
def test_an_expression_is_no_number(answer: str) -> None:
    assert number(answer) is None
    assert not same_number(answer, answer)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        ("Evelyn", r"\text{Evelyn}"),
        ("p-q", "p - q"),
        ("10000", r"10,\!000"),
        ("1+x", "x+1"),
    ],
)
def test_equal_expressions(answer: str, truth: str) -> None:
    assert same_expression(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), [("5x", "5"), ("3", "4"), (r"\frac13", "0.3"), ("", "1"), ("p+q", "p-q")])
def test_unequal_expressions(answer: str, truth: str) -> None:
    assert not same_expression(answer, truth)


def test_expressions_are_compared_off_the_main_thread_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_expression("x+1", "1+x")))
    thread.start()
    thread.join()
    assert found == [True]


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
        assert same_number(final_answer(row["answer"]) or "", truth), row
    math500 = [json.loads(line) for line in (DATA / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(math500) == 500
    wrong = [r["answer"] for r in math500 if not same_expression(final_answer(r["solution"]) or "", r["answer"])]
    assert not wrong
    # Each fifth answer against the next one: equal only where they really are, small numbers now and then.
    crossed = sum(same_expression(a["answer"], b["answer"]) for a, b in zip(math500[::5], math500[1::5], strict=True))
    assert crossed <= 4
