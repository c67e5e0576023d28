import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.agreement import Agreement, agreement


def test_answers_are_counted_by_what_both_say() -> None:
    first = [True] * 5 + [False] * 5
    second = [True, True, True, False, None, True, True, False, None, None]
    found = agreement(first, second)
    assert found == Agreement(both_right=3, both_wrong=1, only_first=1, only_second=2, unclear=3)
    assert (found.judged, found.share) == (7, 4 / 7)
    assert (found.first_right, found.second_right) == (4 / 7, 5 / 7)
    # Chance agrees on (4 * 5 + 3 * 2) / 49 of them.
    assert found.kappa == pytest.approx((4 / 7 - 26 / 49) / (1 - 26 / 49))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    found = agreement(first, second)
    if len(set(first + second)) == 1:
        assert found.kappa is None and found.share == 1.0
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


@pytest.mark.parametrize("second", [[], [None, None]])
def test_where_nothing_is_judged_nothing_is_said(second: list[None]) -> None:
    found = agreement([True] * len(second), second)
    assert found.unclear == len(second)
    assert found.share is found.kappa is found.first_right is found.second_right is None


def test_other_answers_are_a_mistake() -> None:
    with pytest.raises(HybridError, match="verdicts on the same answers; found 1 and 2"):
        agreement([True], [True, False])
