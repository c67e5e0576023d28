"""The intervals are compared with loops that follow the definitions word for word."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.statistics import TAIL, accuracy, difference, gap, holm, mcnemar

bits = st.integers(0, 1)
triples = st.lists(st.tuples(bits, bits, bits), min_size=1, max_size=60)


def arms(rng: np.random.Generator, documents: int, *rates: float) -> list[np.ndarray]:
    """Scores whose arms agree more often than chance, as arms on the same documents do."""
    hardness = rng.random(documents)
    return [(0.6 * hardness + 0.4 * rng.random(documents) < rate).astype(float) for rate in rates]


def naive_interval(
    columns: list[np.ndarray], statistic: Callable[..., float], resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of a paired bootstrap that draws documents one at a time."""
    draw = random.Random(seed)
    documents = len(columns[0])
    values = []
    for _ in range(resamples):
        drawn = [draw.randrange(documents) for _ in range(documents)]
        values.append(statistic(*[sum(column[i] for i in drawn) / documents for column in columns]))
    values.sort()
    return values[math.ceil(TAIL * resamples) - 1], values[math.ceil((1 - TAIL) * resamples) - 1]


def test_wilson_matches_published_values() -> None:
    found = accuracy([1] * 71 + [0] * 29)
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.71, 0.6146, 0.7899)


@given(st.integers(1, 400), st.data())
def test_wilson_ends_are_where_the_score_test_rejects(documents: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, documents))
    found = accuracy([1] * right + [0] * (documents - right))
    assert 0 <= found.low <= found.value <= found.high <= 1
    z = 1.959963984540054
    for end in (found.low, found.high):
        assert abs(found.value - end) == pytest.approx(z * math.sqrt(end * (1 - end) / documents), abs=1e-6)


def test_wilson_is_no_point_where_all_are_right() -> None:
    found = accuracy([1] * 200)
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.9812, abs=1e-4)


def test_accuracy_refuses_what_is_not_right_or_wrong() -> None:
    with pytest.raises(HybridError, match=r"score of 0\.5; scores must be 0 or 1"):
        accuracy([0, 0.5])


def test_gap_interval_matches_a_loop_over_drawn_documents() -> None:
    columns = arms(np.random.default_rng(0), 120, 0.35, 0.8, 0.9)
    found = gap(*columns, seed=3)
    low, high = naive_interval(columns, lambda b, h, t: (h - b) / (t - b), resamples=3000, seed=5)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert found.low < found.recovered < found.high


def test_difference_interval_matches_a_loop_over_drawn_documents() -> None:
    columns = arms(np.random.default_rng(1), 120, 0.7, 0.5)
    found = difference(*columns, seed=3)
    low, high = naive_interval(columns, lambda a, b: a - b, resamples=3000, seed=5)
    assert found.value == pytest.approx(columns[0].mean() - columns[1].mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(2)
    one = (rng.random(200) < 0.5).astype(float)
    other = one.copy()
    other[:10] = 1 - other[:10]
    paired = difference(one, other)
    broken = difference(one, rng.permutation(other))
    assert paired.high - paired.low < 0.5 * (broken.high - broken.low)


@pytest.mark.parametrize(
    ("treated", "recovered"),
    [([1, 1, 1, 1], 1.5), ([0, 0, 0, 0], -0.5), ([1, 1, 0, 0], 0.5), ([1, 1, 1, 0], 1.0)],
)
def test_gap_is_signed_and_never_clipped(treated: list[int], recovered: float) -> None:
    assert gap([1, 0, 0, 0] * 50, treated * 50, [1, 1, 1, 0] * 50).recovered == recovered


@given(triples)
@settings(max_examples=40, deadline=None)
def test_gap_of_the_ends_is_exact_and_order_does_not_matter(rows: list[tuple[int, int, int]]) -> None:
    base, treated, thinking = (list(column) for column in zip(*rows, strict=True))
    found = gap(base, treated, thinking)
    assert found == gap(base[::-1], treated[::-1], thinking[::-1])
    if sum(thinking) <= sum(base):
        assert (found.recovered, found.low, found.high) == (None, None, None)
        assert found.reason == "thinking is not above base"
        return
    assert found.recovered == pytest.approx((sum(treated) - sum(base)) / (sum(thinking) - sum(base)))
    assert gap(base, base, thinking).recovered == 0
    assert gap(base, thinking, thinking).recovered == 1
    if found.reason is None:
        assert found.low <= found.high
        assert (gap(base, thinking, thinking).low, gap(base, thinking, thinking).high) == (1, 1)
    else:
        assert (found.low, found.high) == (None, None)


@given(triples)
@settings(max_examples=40, deadline=None)
def test_difference_is_antisymmetric_and_its_own_zero(rows: list[tuple[int, int, int]]) -> None:
    one, other, _ = zip(*rows, strict=True)
    assert difference(one, other).value == -difference(other, one).value
    same = difference(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_interval_is_undefined_where_resamples_leave_the_gap_open() -> None:
    base, thinking = [1] * 9 + [0] * 11, [0] * 10 + [1] * 10
    found = gap(base, thinking, thinking)
    assert found.recovered == 1
    assert (found.low, found.high) == (None, None)
    assert "thinking is not above base in" in found.reason


def test_resamples_without_a_gap_widen_the_interval() -> None:
    # Of 100 documents base alone gets 9 right, thinking alone 10, thinking and the treated arm 11, none 70.
    found = gap([1] * 9 + [0] * 91, [0] * 9 + [1] * 11 + [0] * 80, [0] * 9 + [1] * 21 + [0] * 70)
    rng = np.random.default_rng(1)
    only_base, neither, both, _ = rng.multinomial(100, [0.09, 0.1, 0.11, 0.7], size=10_000).T
    opening = neither + both - only_base
    assert 0.005 < (opening <= 0).mean() < TAIL
    ratios = ((both - only_base) / np.where(opening > 0, opening, 1))[opening > 0]
    low, high = np.quantile(ratios, [TAIL, 1 - TAIL])
    assert found.reason is None
    assert found.low < low - 0.1
    assert found.high > high + 0.01


def test_seed_decides_the_resamples() -> None:
    columns = arms(np.random.default_rng(4), 80, 0.3, 0.6, 0.9)
    assert gap(*columns, seed=1) == gap(*columns, seed=1)
    assert gap(*columns, seed=1) != gap(*columns, seed=2)


@pytest.mark.parametrize("scores", [([1], [1, 0], [1]), ([], [], [])])
def test_unpaired_or_missing_scores_are_refused(scores: tuple[list[int], ...]) -> None:
    with pytest.raises(HybridError, match="same documents in every arm"):
        gap(*scores)


@pytest.mark.parametrize("rates", [(0.3, 0.7, 0.9), (0.1, 0.12, 0.5), (0.4, 0.3, 0.8)])
def test_interval_is_the_bca_one_of_scipy(rates: tuple[float, ...]) -> None:
    columns = arms(np.random.default_rng(6), 150, *rates)

    def recovered(base: np.ndarray, treated: np.ndarray, thinking: np.ndarray, axis: int = -1) -> np.ndarray:
        return (treated - base).mean(axis) / (thinking - base).mean(axis)

    theirs = bootstrap(columns, recovered, paired=True, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    plain = bootstrap(columns, recovered, paired=True, method="percentile", n_resamples=20_000, rng=1)
    found = gap(*columns, seed=3)
    width = theirs.high - theirs.low
    # Two draws of the resamples differ by a few percent of the width; the correction is not less than that.
    assert found.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.04 * width)
    assert plain.confidence_interval.high != pytest.approx(theirs.high, abs=1e-6)


def test_difference_interval_is_the_bca_one_of_scipy() -> None:
    columns = arms(np.random.default_rng(8), 90, 0.95, 0.8)
    theirs = bootstrap(
        columns, lambda a, b, axis=-1: (a - b).mean(axis), paired=True, method="BCa", n_resamples=20_000, rng=1
    ).confidence_interval
    found = difference(*columns, seed=3)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1.01 / 90)


def test_mcnemar_is_the_exact_test_of_statsmodels() -> None:
    contingency_tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for better, worse in ((0, 0), (1, 0), (7, 1), (12, 25), (40, 40)):
        one = [1] * better + [0] * worse + [1] * 5 + [0] * 3
        other = [0] * better + [1] * worse + [1] * 5 + [0] * 3
        found = mcnemar(one, other)
        theirs = contingency_tables.mcnemar([[5, better], [worse, 3]], exact=True)
        assert (found.better, found.worse) == (better, worse)
        assert found.p == pytest.approx(theirs.pvalue)


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=20, deadline=None)
def test_holm_is_the_step_down_of_statsmodels(ps: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    expected = multitest.multipletests(ps, method="holm")[1].tolist() if ps else []
    assert holm(ps) == pytest.approx(expected)
