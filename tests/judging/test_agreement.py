import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from lm_eval_hybrid.judging.verdicts import Agreement


def test_answers_are_counted_by_both_verdicts() -> None:
    first = [True] * 5 + [False] * 5
    second = [True, True, True, False, None, True, True, False, None, None]
    found = Agreement.of(list(zip(first, second, strict=True)))
    assert found == Agreement(both_right=3, both_wrong=1, only_first=1, only_second=2, unclear=3)
    assert (found.judged, found.share) == (7, 4 / 7)
    assert (found.first_right, found.second_right) == (4 / 7, 5 / 7)
    # Chance agrees on (4 * 5 + 3 * 2) / 49 of them.
    assert found.kappa == pytest.approx((4 / 7 - 26 / 49) / (1 - 26 / 49))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_kappa_is_that_of_the_answers(pairs: list[tuple[bool, bool]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    found = Agreement.of(pairs)
    if len(set(first + second)) == 1:
        assert found.kappa is None and found.share == 1.0
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


@pytest.mark.parametrize("second", [[], [None, None]])
def test_without_verdicts_there_is_no_agreement(second: list[None]) -> None:
    found = Agreement.of([(True, other) for other in second])
    assert found.unclear == len(second)
    assert found.share is found.kappa is found.first_right is found.second_right is None
