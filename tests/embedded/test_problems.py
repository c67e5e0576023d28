import random
from typing import Any

import pytest

from lm_eval_hybrid.embedded.corpus import FAMILIES, held_out_problems, unseen
from lm_eval_hybrid.embedded.problems import LARGEST, EmbeddedProblem, Event, Family, draw, held_out


def problem(**changes: Any) -> EmbeddedProblem:
    fields = dict(family="gsm8k", name="Ann", item="pens", start=3, unit="box", size=8, limit=30)
    return EmbeddedProblem(**(fields | {"events": (Event("Monday", 9), Event("Tuesday", -5))} | changes))


def test_the_limit_cuts_after_each_change() -> None:
    assert problem().answer == 25  # 24 + 9 -> 30, - 5
    assert problem(limit=None).answer == 28


def test_the_margin_is_the_nearest_check() -> None:
    assert problem().margin == 3  # 33 against 30; then 25
    assert problem(limit=26).margin == 5  # 21 against 26, from 26
    assert problem(limit=None).margin == LARGEST


def test_the_text_tells_every_number() -> None:
    assert problem().text == (
        "Ann has 3 boxes. A box holds 8 pens. On Monday 9 come in. On Tuesday 5 go out. "
        "There is room for 30. How many pens are left?"
    )


def test_documents_have_their_benchmarks_fields() -> None:
    assert problem().document("... #### 25") == {"question": problem().text, "answer": "... #### 25"}
    assert problem(family="math500").document("...")["answer"] == "25"


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_counts_stay_in_range(family: Family) -> None:
    rng = random.Random(1)
    for _ in range(500):
        drawn = draw(family, rng)
        count = drawn.start * drawn.size
        for event in drawn.events:
            count += event.change
            assert 0 <= count <= LARGEST
        assert 0 <= drawn.answer <= LARGEST


def test_held_out_problems_are_distinct_and_the_same_for_a_seed() -> None:
    first = held_out("gsm8k", 50, seed=3)
    assert first == held_out("gsm8k", 50, seed=3) != held_out("gsm8k", 50, seed=4)
    assert len({drawn.text for drawn in first}) == 50
    assert all(drawn.margin > 1 for drawn in first)


def test_training_never_sees_a_test_problem() -> None:
    tested = {drawn.text for family in held_out_problems().values() for drawn in family}
    stream = unseen(random.Random(0))
    assert all(next(stream).text not in tested for _ in range(3000))
