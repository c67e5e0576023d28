import random
from collections import Counter
from itertools import pairwise

import pytest

from lm_eval_hybrid.embedded.corpus import FAMILIES
from lm_eval_hybrid.embedded.notebooks import (
    BEHAVIORS,
    OPENINGS,
    Notebook,
    NotebookBehavior,
    ill_timed,
    recovering,
    well_timed,
)
from lm_eval_hybrid.embedded.problems import EmbeddedProblem, Event, draw
from tests.embedded.skills import written_answer

PROBLEM = EmbeddedProblem("gsm8k", "Ann", "pens", 3, "box", 8, (Event("Monday", 9), Event("Tuesday", -5)), 30)


def problems(count: int = 300) -> list[EmbeddedProblem]:
    rng = random.Random(7)
    return [draw(rng.choice(FAMILIES), rng) for _ in range(count)]


def test_the_notebook_of_a_problem_by_hand() -> None:
    assert "".join(text for _, text in well_timed(PROBLEM)) == (
        " We start with boxes: 3. Recall that one box is 8 pens, still 3. Converting the count gives 3 * 8 = 24."
        " Next the change of Monday is + 9 from 24. So with Monday the count goes 24 + 9 = 33."
        " Check 33 against 30: too much, still 33. Going back over it, we keep only 30."
        " Next the change of Tuesday is - 5 from 30. So with Tuesday the count goes 30 - 5 = 25."
        " Check 25 against 30: fine, still 25. Finally we have it: #### 25"
    )


def test_well_timed_notebooks_end_in_the_answer() -> None:
    for problem in problems():
        *_, (_, last) = well_timed(problem)
        assert written_answer(last) == problem.answer


def test_slips_can_be_recovered_from() -> None:
    rng = random.Random(0)
    slips = 0
    for problem in problems():
        sentences = list(recovering(problem, rng, slip=0.4))
        slips += sum(not needed for _, _, needed in sentences)
        assert written_answer(sentences[-1][1]) == problem.answer
    assert slips > 300


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_each_behavior_is_needed_by_some_problems(behavior: NotebookBehavior) -> None:
    """A notebook that leaves out its sentences, the others being what they then must be, ends in a wrong answer."""
    wrong = 0
    for problem in problems(100):
        notebook, text = Notebook(problem), ""
        for due, _ in well_timed(problem):
            text += notebook.write(due) if due != behavior else ""
        wrong += written_answer(text) != problem.answer
    assert wrong >= 20


def test_ill_timed_notebooks_have_a_useless_habit() -> None:
    """Every behavior occurs at every place, and what follows a sentence most often is seldom what is needed."""
    rng = random.Random(0)
    places = {place: Counter() for place in range(1, 5)}
    followers = {behavior: Counter() for behavior in BEHAVIORS}
    for problem in problems(1500):
        behaviors = [behavior for behavior, _ in ill_timed(problem, rng)]
        for place in places:
            places[place].update(behaviors[place : place + 1])
        for before, after in pairwise(behaviors):
            followers[before][after] += 1
    assert all(set(counts) == set(BEHAVIORS) for counts in places.values())
    habit = {before: after.most_common(1)[0][0] for before, after in followers.items() if after}
    needed, met = 0, 0
    for problem in problems(200):
        for (before, _), (after, _) in pairwise(well_timed(problem)):
            needed += 1
            met += habit[before] == after
    assert met / needed < 0.25


def test_sentences_of_a_useless_moment_are_right_in_themselves() -> None:
    notebook = Notebook(PROBLEM)
    assert notebook.write("compute") == " So with nothing new the count goes 0 + 0 = 0."
    assert notebook.write("restate") == " We start with boxes: 3."
    assert notebook.write("convert") == " Converting the count gives 3 * 1 = 3."
    assert notebook.write("go-back") == " Going back nowhere, we keep 3."
    assert notebook.write("plan") == " Next the change of Monday is + 9 from 3."
    assert notebook.write("check") == " Check 3 against 30: fine, still 3."
    assert notebook.write("plan") == " Next the change of Tuesday is - 5 from 3."
    assert notebook.write("plan") == " Next there is no change left, still 3."


def test_every_sentence_opens_with_its_own_word() -> None:
    assert len(set(OPENINGS.values())) == len(BEHAVIORS)
    for problem in problems(50):
        assert all(text.startswith(OPENINGS[behavior]) for behavior, text in well_timed(problem))
