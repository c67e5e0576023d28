"""Accuracy, gap recovered and paired differences, each with a 95% interval.

Gap recovered is (treated - base) / (thinking - base): 0 is the base model, 1 the thinking model. It is
signed and never clipped: an arm that hurts is below 0, one that beats the thinking model above 1. Its
interval is a paired bootstrap over documents: a resample draws documents, and every arm is scored on the
same draw. The ends are BCa ones: percentiles, corrected for the bias and the skew of a ratio.

The bootstrap does not draw indices. Documents on which all arms scored alike are interchangeable, and how
often each such pattern of scores occurs in a resample is multinomial; drawing those counts gives the same
distribution in a few columns instead of one per document, whatever the order of the documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lm_eval_hybrid.common.errors import HybridError

RESAMPLES = 10_000
TAIL = 0.025  # probability beyond either end of a 95% interval
Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Accuracy:
    """Share of documents answered right, with its 95% Wilson score interval; all in [0, 1]."""

    value: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class Gap:
    """Signed gap recovered with its 95% interval, in units of the gap (1 = all of it).

    `recovered` is None where thinking is not above base; `low` and `high` are None there too, and where the
    resamples leave that open. `reason` then says why in words; it is None where all three numbers stand.
    """

    recovered: float | None
    low: float | None
    high: float | None
    documents: int
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """Mean score of one arm minus another's on the same documents, with its 95% interval; all in [-1, 1]."""

    value: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class McNemar:
    """Of the documents that only one of two arms gets right: how many are the first's (`better`) and the second's
    (`worse`), and the two-sided p-value of a split as uneven as that, were both equally likely."""

    better: int
    worse: int
    p: float


def accuracy(scores: Scores) -> Accuracy:
    """Mean of per-document scores (0 or 1) with Wilson's interval (Wilson 1927).

    The interval stays inside [0, 1] and does not shrink to a point where every document is right or wrong.

    Raises:
        HybridError: no scores, or a score that is neither 0 nor 1.
    """
    (column,) = _binary(_paired(scores)).T
    n = len(column)
    share = float(column.mean())
    z = NormalDist().inv_cdf(1 - TAIL)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At shares of 0 and 1 one end equals the share on paper; rounding must not carry it past either.
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Accuracy(share, min(share, low), max(share, high), n)


def gap(base: Scores, treated: Scores, thinking: Scores, seed: int = 0) -> Gap:
    """Share of the gap between base and thinking that `treated` recovers.

    Resamples in which thinking is not above base say nothing about the ratio. They are not dropped, which
    would narrow the interval; each counts as beyond both ends. Where that leaves an end without a number, the
    interval is undefined.

    Args:
        base, treated, thinking: per-document scores, shape [documents], in the same order of documents.
        seed: of the bootstrap; the same seed and scores give the same interval.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    sample = _Sample.of(_paired(base, treated, thinking))
    # Sums, not means: integers of 0/1 scores compare exactly.
    total_base, total_treated, total_thinking = sample.sums
    if total_thinking <= total_base:
        return Gap(None, None, None, sample.documents, "thinking is not above base")
    recovered = float((total_treated - total_base) / (total_thinking - total_base))
    resampled, left_out = (_recovered(sums) for sums in (sample.resampled(seed), sample.one_left_out()))
    low, high = _interval(recovered, resampled, left_out, sample.counts)
    if np.isfinite((low, high)).all():
        return Gap(recovered, low, high, sample.documents)
    closed = np.isnan(resampled).mean()
    reason = f"no interval: thinking is not above base in {closed:.1%} of resamples"
    return Gap(recovered, None, None, sample.documents, reason)


def difference(scores: Scores, other: Scores, seed: int = 0) -> Difference:
    """Mean of `scores` minus mean of `other` (shapes [documents], in the same order), by paired bootstrap.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    sample = _Sample.of(_paired(scores, other))
    n = sample.documents
    value = float((sample.sums[0] - sample.sums[1]) / n)
    resampled, left_out = sample.resampled(seed), sample.one_left_out()
    means = (resampled[:, 0] - resampled[:, 1]) / n, (left_out[:, 0] - left_out[:, 1]) / max(1, n - 1)
    return Difference(value, *_interval(value, *means, sample.counts), n)


def mcnemar(scores: Scores, other: Scores) -> McNemar:
    """McNemar's exact test of whether two arms are right equally often (shapes [documents], in the same order).

    Raises:
        HybridError: no scores, arms of different lengths, or a score that is neither 0 nor 1.
    """
    from scipy.stats import binomtest

    one, two = _binary(_paired(scores, other)).T
    better, worse = int(((one == 1) & (two == 0)).sum()), int(((one == 0) & (two == 1)).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return McNemar(better, worse, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p-value, adjusted so that the chance of any false alarm among all of them is bounded (Holm 1979)."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class _Sample:
    """Documents, those with the same scores together.

    Attributes:
        patterns: [patterns, arms] float64.
        counts: [patterns], how many documents have each.
    """

    patterns: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> "_Sample":
        return cls(*np.unique(scores, axis=0, return_counts=True))

    @property
    def documents(self) -> int:
        return int(self.counts.sum())

    @property
    def sums(self) -> np.ndarray:
        """Per arm, [arms]."""
        return self.counts @ self.patterns

    def resampled(self, seed: int) -> np.ndarray:
        """Sums per arm over bootstrap resamples of documents, [RESAMPLES, arms]."""
        share = self.counts / self.documents
        return np.random.default_rng(seed).multinomial(self.documents, share, size=RESAMPLES) @ self.patterns

    def one_left_out(self) -> np.ndarray:
        """Sums per arm without one document of each pattern, [patterns, arms]."""
        return self.sums - self.patterns


def _recovered(sums: np.ndarray) -> np.ndarray:
    """Gap recovered of sums [n, 3] of base, treated, thinking; NaN where thinking is not above base."""
    opening = sums[:, 2] - sums[:, 0]
    return np.where(opening > 0, (sums[:, 1] - sums[:, 0]) / np.where(opening > 0, opening, 1.0), np.nan)


def _interval(observed: float, resampled: np.ndarray, left_out: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95% BCa interval (Efron 1987); an end is infinite where too many of the resamples (NaN) say nothing.

    Args:
        resampled: [RESAMPLES], of bootstrap resamples.
        left_out: [patterns], without one document of each pattern, of which there are `counts`.
    """
    normal = NormalDist()
    nothing = np.isnan(resampled)
    # Those that equal what was observed, or say nothing, are half below it.
    below = ((resampled < observed).sum() + 0.5 * ((resampled == observed) | nothing).sum()) / len(resampled)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(resampled)), 1 - 0.5 / len(resampled)))
    acceleration = _acceleration(left_out, counts)

    def end(tail: float, beyond: float) -> float:
        z = bias + normal.inv_cdf(tail)
        if acceleration * z >= 1:
            return beyond
        level = normal.cdf(bias + z / (1 - acceleration * z))
        return _quantile(np.where(nothing, beyond, resampled), level)

    return end(TAIL, -np.inf), end(1 - TAIL, np.inf)


def _acceleration(left_out: np.ndarray, counts: np.ndarray) -> float:
    """How the standard error changes with the value, by the jackknife; 0 where it tells nothing."""
    if np.isnan(left_out).any():
        return 0.0
    deviation = np.average(left_out, weights=counts) - left_out
    spread = (counts * deviation**2).sum()
    return float((counts * deviation**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0


def _paired(*arms: Scores) -> np.ndarray:
    """Stack arms into float64 [documents, arms]."""
    lengths = [len(arm) for arm in arms]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        found = ", ".join(map(str, lengths))
        raise HybridError(
            f"a paired comparison needs the same documents in every arm; found {found} scores; run the arms again"
        )
    return np.stack([np.asarray(arm, dtype=np.float64) for arm in arms], axis=1)


def _binary(scores: np.ndarray) -> np.ndarray:
    if not np.isin(scores, (0.0, 1.0)).all():
        odd = scores[~np.isin(scores, (0.0, 1.0))][0]
        raise HybridError(f"accuracy needs scores of 0 or 1; found {odd:g}; use a task that scores exact_match so")
    return scores


def _quantile(values: np.ndarray, share: float) -> float:
    """Smallest value that at least `share` of `values` do not exceed; never a mean of two."""
    return float(np.quantile(values, share, method="inverted_cdf"))
