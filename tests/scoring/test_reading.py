"""What a text answers: marks and conclusions, what runs on, what breaks off."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.scoring.equality import same
from lm_eval_hybrid.scoring.metrics import is_right
from lm_eval_hybrid.scoring.reader.reading import marked_answer, read
from tests import shared_data

BENCHMARKS = shared_data.DATA / "benchmarks"
NUTS = "Ann has 20 nuts. She eats 2 of them and buys twice as many as she has left. How many nuts does Ann have now?"
PRICE = "A pen costs $3 and a book costs 4 times as much. How much do 2 pens and a book cost together?"
ROOTS = "Find all real roots of $x^2 - 8x + 15 = 0.$ Enter them separated by commas."
LEFT = "A tank holds 90 liters. It loses 5 liters an hour. How many liters are left if 4 hours pass?"
BEST = "Marta runs 9 km an hour, Pia 8 km. Who runs faster?"
FILL = "The shop is at the corner of two streets and sells nuts to whoever comes by. " * 12  # no short text

MARKED = [
    (r"So it is \boxed{54}.", "54"),
    (r"So it is \fbox{54}.", "54"),
    (r"So it is $\boxed 54$.", "54"),
    (r"\boxed{54 \text{ nuts}}", "54"),
    (r"It is \boxed{\frac{108}{2}}.", "54"),
    (r"First \boxed{18}, in the end \boxed{54}.", "54"),
    (r"\boxed{54} and, cut off, \boxed{\frac{5", "54"),
    (r"Put it in \boxed{}: \boxed{54}", "54"),
    ("#### 54", "54"),
    ("#### 54 nuts", "54"),
    ("<answer> 54 </answer>", "54"),
    ('{"answer": 54}', "54"),
    ("#### Step 3: Add\nThen she has 18.\n#### 54", "54"),
    ("The answer is 54.", "54"),
    ("**Final Answer**\n\n54", "54"),
    ("**Final Answer:** Ann has 54 nuts now.", "54"),
    ("Answer: 54 nuts", "54"),
    ("The final answer is:\n\\[\n54\n\\]", "54"),
    ("### Final answer\n$$54$$", "54"),
    ("So 54 nuts is the answer.", "54"),
    ("The answer to the question is that Ann has 54 nuts now.", "54"),
    ("The answer is 54, which is 3 times 18.", "54"),
    ("The answer is 18. Wait, that is wrong. The answer is 54.", "54"),
    (r"It is \boxed{18}. But that is a mistake. Therefore, Ann has 54 nuts now.", "54"),
    (r"It is \boxed{54}. The answer is: 54", "54"),
]
CONCLUDED = [
    ("She has 20 - 2 = 18 left.\nShe buys 2 * 18 = 36.\nSo she has 18 + 36 = 54 nuts now.", "54"),
    ("20 - 2 = 18\n2 * 18 = 36\n18 + 36 = 54", "54"),
    ("Therefore, Ann has 54 nuts now. She ate 2 nuts and had 20 nuts at first.", "54"),
    ("Ann has 54 nuts now. This is found by adding the 18 nuts left to the 36 nuts bought.", "54"),
    ("Thus, the number of nuts Ann has now is 18 + 36, which is 54.", "54"),
    ("Hence, with 18 left and 36 bought, she has a total of 54 nuts.", "54"),
    ("Therefore, Ann has **54** nuts now.", "54"),
    ("Therefore, the number of nuts is:\n\\[\n18 + 36 = 54\n\\]", "54"),
    ("There are fifty-four nuts, or 54.", "54"),
    ("\\begin{align*}\nn &= 18 + 2 \\cdot 18 \\\\\n&= 54.\n\\end{align*}", "54"),
    ("In conclusion, Ann has 54 nuts now. I hope this helps! Let me know if you have any questions.", "54"),
]
RUN_ON = [
    ("Ann has 54 nuts now.\nQuestion: Bob has 5 figs. How many has he?\nAnswer: 5", "54"),
    ("Ann has 54 nuts now.\n\nProblem: Bob has 5 figs.\nSo he has 5 figs.", "54"),
    ("Ann has 54 nuts now.\nQ: What is 2 + 3?\nA: 5", "54"),
    ("So the answer is 54.\n\nWhat is 2 + 3?\nThe answer is 5.", "54"),
    ("Ann has 54 nuts now.\nUser: thanks\nAssistant: 5", "54"),
    ("Ann has 54 nuts now.\nHuman: and 2 + 3?\nAssistant: The answer is 5.", "54"),
    ("Ann has 54 nuts now.\nYou are an AI assistant. The answer is 5.", "54"),
    ("Ann has 54 nuts now.<|im_start|>user\nThe answer is 5.", "54"),
    ("Ann has 54 nuts now.\n\nExercise 2: Bob has 5 figs. The answer is 5.", "54"),
    ("Ann has 54 nuts now.\n### Question\nThe answer is 5.", "54"),
    (r"It is \boxed{54}." + "\n\nA box has 3 rows of 7 figs. How many figs are in the box?\n\\boxed{21}", "54"),
    ("Problem: " + NUTS + "\nSolution: 18 + 36 = 54.\nProblem: Bob has 5 figs.\nSolution: 5", "54"),
    ("Question: how many nuts?\nAnswer: 54\nQuestion: how many figs?\nAnswer: 5", "54"),
    (
        FILL + "Therefore, Ann has 54 nuts now.\n" + "She has 20 - 2 = 18 left. She buys 36. " * 40 + "She has 20 -",
        "54",
    ),
    (FILL + "The answer is 54. " * 60 + "The answer is 5", "54"),
    ("The answer is 54.\n```python\nprint(5)\n```", "54"),
]


@pytest.mark.parametrize(("text", "answer"), MARKED + CONCLUDED + RUN_ON)
def test_the_answer_that_a_text_commits_to_is_read(text: str, answer: str) -> None:
    assert is_right(text, answer, question=NUTS), read(text, NUTS)


@pytest.mark.parametrize("text", [text for text, _ in MARKED])
def test_marks_are_read_without_the_question_too(text: str) -> None:
    assert is_right(text, "54")


@pytest.mark.parametrize(
    ("text", "question", "truth"),
    [
        ("2 pens cost $6, the book costs $12. Together they cost $18.", PRICE, "18"),
        ("The total cost of 2 pens and a book is $6 + $12, which is $18. A pen is $3.", PRICE, "18"),
        ("Therefore, 70 liters are left if 4 hours pass.", LEFT, "70"),
        ("Since 5 * 4 = 20 liters are lost, there are 70 liters left.", LEFT, "70"),
        ("The roots are $x = 3$ and $x = 5$.", ROOTS, "3,5"),
        (r"The roots are \boxed{3} and \boxed{5}.", ROOTS, "3,5"),
        (r"\boxed{5}, \boxed{3}", ROOTS, "3,5"),
        ("Therefore, $x = 5$ or $x = 3$.", ROOTS, "3,5"),
        ("Therefore, Marta runs faster.", BEST, "Marta"),
        ("The answer is Marta.", BEST, "Marta"),
        ("Marta runs 9 km an hour, which is 1 km more. So Marta runs faster.", BEST, "Marta"),
        ("The solution is the interval (3, 5].", "Which $x$ are solutions?", "(3,5]"),
        ("Therefore, $P(x) = 2x + 1$.", "Find the polynomial $P(x).$", "2x+1"),
        ("The probability is 2/3, which is approximately 0.67.", "What is the probability?", r"\frac{2}{3}"),
        ("The correct option is (B), a line.", "What is it? (A) A circle (B) A line (C) A plane", r"\text{(B)}"),
        ("So it is 5 in all. The correct answer is option (C).", "How many is it in all?", "5"),
    ],
)
def test_the_question_tells_which_value_answers(text: str, question: str, truth: str) -> None:
    assert is_right(text, truth, question=question), read(text, question)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot say.",
        NUTS,
        (NUTS + "\n") * 30 + NUTS[:40],
        FILL + "First, she has 54 nuts in a sack, and then she goes on to count the other",
        FILL + "For 50 nuts it is 50. For 51 nuts it is 51. For 52 nuts it is 52. For 53 nuts it is 53. For 54 nuts it",
        FILL + r"So the answer is \boxed{54",
        FILL + "Let us see. We need to find out how many nuts there are: 18 + 36 = 5",
    ],
)
def test_a_text_that_never_commits_answers_nothing(text: str) -> None:
    assert not is_right(text, "54", question=NUTS), read(text, NUTS)


def final_answer(text: str, question: str | None = None, cut: bool | None = None) -> str | None:
    found = read(text, question, cut)
    return None if found is None else found.answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 - 4 = 9, so 9 * 2 = 18.\n#### 18", "18"),
        (r"\boxed{3} first, then #### 4", "4"),
        (r"#### 4 first, then \boxed{3}", "3"),
        (r"\boxed{1} and at last \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
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


def test_only_what_follows_the_thought_is_read() -> None:
    assert final_answer("The answer is 5.</think>The answer is 54.") == "54"
    assert final_answer("The answer is 5.</think>") is None


def test_the_limit_of_length_tells_what_broke_off() -> None:
    text = "She has 18 left. She buys 36. In all, 54"
    assert final_answer(text, NUTS, cut=False) == "54"
    assert final_answer(text, NUTS, cut=True) != "54"


PIECES = [*"ab 12.,:;=?!\n#*-_$\\{}()[]<>|^&%", "boxed{", "\\[", "answer is ", "So ", "Q: ", "frac", "18 nuts"]


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=200),
    question=st.sampled_from([None, NUTS, ROOTS, ""]),
)
@settings(deadline=None, max_examples=300)
def test_any_text_is_read_without_raising(pieces: list[str], question: str | None) -> None:
    found = read("".join(pieces), question)
    assert found is None or isinstance(found.answer, str)


@given(st.text(max_size=200))
def test_any_unicode_is_read_without_raising(text: str) -> None:
    read(text, NUTS)


@pytest.mark.parametrize(
    "piece",
    ["the nuts are many ", "She has 18 nuts. ", "#", "$", "\\[", "\\boxed{", "\n", " ", "* ", "9", "1,", "answer ",
     "x = ", "\\begin{align}", "What is 5? ", "<think>", "Question ", ": \n", "which is 5, ", "because "],
)  # fmt: skip
def test_long_texts_take_well_under_a_second(piece: str) -> None:
    text = piece * (200_000 // len(piece))  # the length of 50,000 tokens
    started = time.perf_counter()
    read(text, NUTS)
    assert time.perf_counter() - started < 1.5  # a tenth of it, on a machine that does nothing else


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_the_reference_solutions_of_both_benchmarks_score() -> None:
    gsm8k = [json.loads(line) for line in (BENCHMARKS / "gsm8k_test.jsonl").open(encoding="utf-8")]
    assert len(gsm8k) == 1319
    assert not [row for row in gsm8k if not is_right(row["answer"], marked_answer(row["answer"]), row["question"])]
    math500 = [json.loads(line) for line in (BENCHMARKS / "math500_test.jsonl").open(encoding="utf-8")]
    assert len(math500) == 500
    assert not [row for row in math500 if not is_right(row["solution"], row["answer"], row["problem"])]
    # Each fifth answer against the next one: equal only where they really are, small numbers now and then.
    assert sum(same(a["answer"], b["answer"]) for a, b in zip(math500[::5], math500[1::5], strict=True)) <= 4


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_most_solutions_are_read_without_their_marks() -> None:
    rows = [json.loads(line) for line in (BENCHMARKS / "gsm8k_test.jsonl").open(encoding="utf-8")][::3]
    right = sum(
        is_right(row["answer"].partition("####")[0], marked_answer(row["answer"]), row["question"]) for row in rows
    )
    assert right / len(rows) >= 0.93
