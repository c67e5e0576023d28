"""Scores of one answer."""

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import Finish, Generation, TokenRecord
from lm_eval_hybrid.harness.records import HybridAnswer
from lm_eval_hybrid.scoring import metrics as scoring

GSM8K = {"question": "?", "answer": "2 * 9 = <<2*9=18>>18\n#### 18"}
MATH500 = {"problem": "?", "answer": r"\frac{1}{2}"}


def answer(
    text: str, finish: Finish = "eos", arm: str = "hybrid", thought_open: bool = False, compared: bool = True
) -> HybridAnswer:
    """An answer of four tokens, two of them steered and one changed."""
    records = tuple(
        TokenRecord(i, i, "", i < 2, i < 1, None, None, None, None, None, 0, None, 0, None) for i in range(4)
    )
    return HybridAnswer(text, Generation(text, records, finish), arm, "tiny", thought_open, compared)


def test_an_answer_of_a_hybrid_has_every_score() -> None:
    assert scoring.gsm8k(GSM8K, [answer(" so #### 18")]) == {
        "exact_match": 1.0,
        "thought_unfinished": 0.0,
        "steered_fraction": 0.5,
        "changed_fraction": 0.25,
        "truncated": 0.0,
    }
    assert scoring.gsm8k(GSM8K, [answer(" so #### 18", "length")])["truncated"] == 1.0


def test_what_nobody_measured_is_left_out() -> None:
    assert scoring.gsm8k(GSM8K, ["#### 17"]) == {"exact_match": 0.0, "thought_unfinished": 0.0}
    assert "changed_fraction" not in scoring.gsm8k(GSM8K, [answer("18", arm="takeover", compared=False)])


@pytest.mark.parametrize(("text", "score"), [(r"\boxed{0.5}", 1.0), (r"\boxed{\frac{2}{4}}", 1.0), ("1 or 2", 0.0)])
def test_math500_compares_expressions(text: str, score: float) -> None:
    assert scoring.math500(MATH500, [text])["exact_match"] == score


def test_an_unfinished_thought_is_no_answer() -> None:
    unfinished = scoring.gsm8k(GSM8K, ["<think> maybe 18"])
    assert unfinished == {"exact_match": 0.0, "thought_unfinished": 1.0}
    assert scoring.gsm8k(GSM8K, ["<think> maybe 17 </think> 18"])["exact_match"] == 1.0
    assert scoring.gsm8k(GSM8K, ["<think> 18 </think> I cannot say."])["exact_match"] == 0.0


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_thought_opened_by_the_prompt_is_unfinished_where_it_was_cut(finish: Finish) -> None:
    cut = scoring.gsm8k(GSM8K, [answer("maybe 18", finish, "thinking", thought_open=True)])
    assert (cut["exact_match"], cut["thought_unfinished"]) == (0.0, 1.0)
    closed = scoring.gsm8k(GSM8K, [answer("maybe </think> So it is 18.", finish, "thinking", thought_open=True)])
    assert (closed["exact_match"], closed["thought_unfinished"]) == (1.0, 0.0)


def test_a_model_that_ends_by_itself_has_answered() -> None:
    assert scoring.gsm8k(GSM8K, [answer("18", "eos", "thinking", thought_open=True)])["exact_match"] == 1.0


def test_a_number_that_the_limit_cut_is_no_answer() -> None:
    assert scoring.gsm8k(GSM8K, [answer("2 * 9 = 18. Then, all in all, 18", "length")])["exact_match"] == 0.0
    assert scoring.gsm8k(GSM8K, [answer("2 * 9 = 18. Then, all in all, 18", "eos")])["exact_match"] == 1.0


def test_the_question_tells_what_was_concluded() -> None:
    doc = {"question": "Ann has 20 nuts and eats 2. How many nuts are left?", "answer": "#### 18"}
    text = "Therefore, Ann has 18 nuts left. She had 20 nuts at first, and she ate 2 of them."
    assert scoring.gsm8k(doc, [text])["exact_match"] == 1.0


@pytest.mark.parametrize(
    "doc",
    [
        {"question": "?", "answer": "so 2 * 9 = 18\n#### 18"},
        {"problem": "?", "solution": r"so it is $\boxed{18}$."},
        {"input": "?", "target": "18"},
        {"input": "?", "target": 18},
        {"Problem": "?", "Answer": 18.0},
        {"question": "?", "answer": ["18", "eighteen"]},
        {"question": "?", "answer": "", "target": "18"},
    ],
)
def test_any_task_is_scored_by_the_truth_in_its_document(doc: dict[str, object]) -> None:
    assert scoring.any_task(doc, [r"It is \boxed{18}."]) == {"exact_match": 1.0, "thought_unfinished": 0.0}
    assert scoring.any_task(doc, [r"It is \boxed{17}."])["exact_match"] == 0.0


@pytest.mark.parametrize("doc", [{"question": "?"}, {"answer": None}, {"answer": True}, {"answer": []}, {}])
def test_a_document_without_truth_is_named(doc: dict[str, object]) -> None:
    with pytest.raises(HybridError, match="must have its true answer in answer or Answer"):
        scoring.any_task(doc, ["18"])
