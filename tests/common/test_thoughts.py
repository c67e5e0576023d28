import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_hybrid.common.thoughts import ANSWERS, MARKS, Thought, thought, thought_is_open
from tests.shared_data import DATA

INSIDE = "Okay, so 2 + 2.\nThat is 4."
ORZ = "It is within <think> </think> and <answer> </answer> tags.\nUser: 2 + 2?\nAssistant: <think>"


def words(text: str, found: Thought | None) -> str | None:
    return None if found is None else text[found.begin : found.end]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_thought_is_what_its_marks_enclose(opening: str, closing: str) -> None:
    text = f"{opening}{INSIDE}{closing}\n\nThe answer is 4."
    assert thought(text) == Thought(len(opening), len(opening) + len(INSIDE), True)
    assert thought(f"Sure.\n{text}") == Thought(len(opening) + 6, len(opening) + 6 + len(INSIDE), True)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_thought_that_the_prompt_opened(opening: str, closing: str) -> None:
    text = f"\n{INSIDE}{closing}\n\nThe answer is 4."
    begun = Thought(0, 1 + len(INSIDE), True)
    # The mark that closes it shows as much; without one, only the prompt does.
    assert thought(text) == thought(text, f"2 + 2?{opening}\n") == begun
    assert thought(INSIDE, f"2 + 2?{opening}\n", unmarked="none") == Thought(0, len(INSIDE), False)
    # Some models write the mark although the prompt ends in it.
    assert words(f"\n{opening}{INSIDE}", thought(f"\n{opening}{INSIDE}", f"2 + 2?{opening}")) == INSIDE


@pytest.mark.parametrize(("opening", "_"), MARKS)
def test_a_thought_may_be_unfinished(opening: str, _: str) -> None:
    text = f"{opening}{INSIDE}"
    assert thought(text) == Thought(len(opening), len(text), False)
    assert thought(opening) == Thought(len(opening), len(opening), False)


@pytest.mark.parametrize("mark", ANSWERS)
def test_an_answer_ends_a_thought_that_nothing_else_does(mark: str) -> None:
    text = f" {INSIDE} {mark}4"
    assert thought(text, ORZ) == thought(text) == Thought(0, text.index(mark), True)
    closed = f" {INSIDE} Then {mark} begins.</think> {mark}4"
    assert thought(closed, ORZ) == Thought(0, closed.index("</think>"), True)


def test_a_prompt_that_speaks_of_marks_opens_no_thought() -> None:
    spoken = ORZ.removesuffix("<think>")
    assert thought(INSIDE, spoken, unmarked="none") is None
    assert thought(f"<think>{INSIDE}", spoken) == Thought(7, 7 + len(INSIDE), False)


def test_without_marks_all_is_reasoning_or_nothing() -> None:
    assert thought(INSIDE) == Thought(0, len(INSIDE), True)
    assert thought(INSIDE, unmarked="none") is None
    assert thought("") == Thought(0, 0, True)


def test_the_first_thought_counts_and_may_be_blank() -> None:
    text = "<think>\n\n</think>\n4 <think>more</think>"
    assert words(text, thought(text)) == "\n\n"
    text = "one</think> two <think>three"
    assert words(text, thought(text)) == "one"
    text = "<think>a <thought>b</thought> c</think>"
    assert words(text, thought(text)) == "a <thought>b</thought> c"


PIECES = st.sampled_from([*(mark for pair in MARKS for mark in pair), *ANSWERS, "a", "\n", "<", "think>"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@given(text=TEXTS, prompt=TEXTS)
def test_thoughts_of_any_text_lie_within_it_and_hold_no_end(text: str, prompt: str) -> None:
    found = thought(text, prompt)
    assert 0 <= found.begin <= found.end <= len(text)
    assert thought(text, prompt, unmarked="none") in (found, None)
    assert found.finished or found.end == len(text)


@given(st.text("ab \n"))
def test_unfinished_thoughts_are_those_that_scoring_takes_for_open(inside: str) -> None:
    for text in (inside, f"<think>{inside}", f"<think>{inside}</think>4", f"{inside}</think>4"):
        assert thought(text).finished is not thought_is_open(text)


def test_the_thoughts_of_real_traces_are_found() -> None:
    files = sorted((DATA / "traces").glob("*.jsonl"))
    if not files:
        pytest.skip("needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
    for row in (json.loads(line) for file in files for line in file.open(encoding="utf-8")):
        found = thought(row["response"])
        assert found.finished is row["closed_think"]
        assert words(row["response"], found).strip() == row["thinking"].strip()
