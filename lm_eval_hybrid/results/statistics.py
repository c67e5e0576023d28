"""Accuracy, gap recovered and paired differences, each with a 95% interval.

Gap recovered is (treated - base) / (thinking - base): 0 is the base model, 1 the thinking model. It is signed and
never clipped: an arm that hurts is below 0, one that beats the thinking model above 1. Intervals of gaps and
differences are BCa intervals of a paired bootstrap: a resample draws documents, and every arm is scored on the same
draw.

Documents on which all arms scored alike are interchangeable, and how often each such pattern of scores occurs in a
resample is multinomial. Drawing those counts gives the distribution of drawing documents in a few columns, whatever
the order of the documents. `scipy.stats.bootstrap` would draw 10,000 x documents indices and rescore every document
for the jackknife, and it cannot count resamples whose ratio is undefined.
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

    `recovered` is None if thinking is not above base. `low` and `high` are None then too, and if too many resamples
    have no gap. `reason` explains a None; it is None itself if all three numbers are defined.
    """

    recovered: float | None
    low: float | None
    high: float | None
    documents: int
    reason: str | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Mean score of one arm minus another's on the same documents, with its 95% interval; all in [-1, 1]."""

    value: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two arms on the same documents.

    Attributes:
        better, worse: documents that only the first arm, or only the second, gets right.
        p: two-sided p-value.
    """

    better: int
    worse: int
    p: float


def accuracy(scores: Scores) -> Accuracy:
    """Mean of per-document scores (0 or 1) with Wilson's interval.

    The interval stays inside [0, 1] and does not shrink to a point if every document is right or wrong.

    Raises:
        HybridError: no scores, or a score that is neither 0 nor 1.
    """
    from scipy.stats import binomtest

    (column,) = _binary(_paired(scores)).T
    n, share = len(column), float(column.mean())
    interval = binomtest(round(column.sum()), n).proportion_ci(1 - 2 * TAIL, method="wilson")
    # At shares of 0 and 1 one end equals the share on paper; rounding must not carry it past.
    return Accuracy(share, min(share, float(interval.low)), max(share, float(interval.high)), n)


def gap(base: Scores, treated: Scores, thinking: Scores, seed: int = 0) -> Gap:
    """Share of the gap between base and thinking that `treated` recovers.

    Resamples in which thinking is not above base have no ratio. Dropping them would narrow the interval, so each
    counts as beyond both ends; if that leaves an end infinite, the interval is undefined.

    Args:
        base, treated, thinking: per-document scores, shape [documents], in the same order of documents.
        seed: of the bootstrap; the same seed and scores give the same interval.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    sample = _Patterns.of(_paired(base, treated, thinking))
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


def difference(scores: Scores, other: Scores, seed: int = 0) -> PairedDifference:
    """Mean of `scores` minus mean of `other` (shapes [documents], in the same order), by paired bootstrap.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    sample = _Patterns.of(_paired(scores, other))
    n = sample.documents
    value = float((sample.sums[0] - sample.sums[1]) / n)
    resampled, left_out = sample.resampled(seed), sample.one_left_out()
    means = (resampled[:, 0] - resampled[:, 1]) / n, (left_out[:, 0] - left_out[:, 1]) / max(1, n - 1)
    return PairedDifference(value, *_interval(value, *means, sample.counts), n)


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
    """Adjust p-values so that the chance of any false alarm among all of them is bounded (Holm 1979)."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class _Patterns:
    """Documents grouped by their scores in all arms.

    Attributes:
        patterns: [patterns, arms] float64, the distinct scores.
        counts: [patterns] int64, documents with each.
    """

    patterns: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> "_Patterns":
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
    """Gap recovered of sums [n, 3] of base, treated, thinking; NaN if thinking is not above base."""
    opening = sums[:, 2] - sums[:, 0]
    return np.where(opening > 0, (sums[:, 1] - sums[:, 0]) / np.where(opening > 0, opening, 1.0), np.nan)


def _interval(observed: float, resampled: np.ndarray, left_out: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95% BCa interval (Efron 1987); an end is infinite if too many resamples are NaN.

    Args:
        resampled: [RESAMPLES], of bootstrap resamples.
        left_out: [patterns], without one document of each pattern.
        counts: [patterns], documents with each pattern.
    """
    normal = NormalDist()
    undefined = np.isnan(resampled)
    # Resamples that equal the observed value, or are undefined, count half as below it.
    below = ((resampled < observed).sum() + 0.5 * ((resampled == observed) | undefined).sum()) / len(resampled)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(resampled)), 1 - 0.5 / len(resampled)))
    acceleration = _acceleration(left_out, counts)

    def end(tail: float, beyond: float) -> float:
        z = bias + normal.inv_cdf(tail)
        if acceleration * z >= 1:
            return beyond
        level = normal.cdf(bias + z / (1 - acceleration * z))
        # The smallest value that at least this share of resamples do not exceed; never a mean of two.
        return float(np.quantile(np.where(undefined, beyond, resampled), level, method="inverted_cdf"))

    return end(TAIL, -np.inf), end(1 - TAIL, np.inf)


def _acceleration(left_out: np.ndarray, counts: np.ndarray) -> float:
    """How the standard error changes with the value, by the jackknife; 0 if that is undefined."""
    if np.isnan(left_out).any():
        return 0.0
    deviation = np.average(left_out, weights=counts) - left_out
    spread = (counts * deviation**2).sum()
    return float((counts * deviation**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0


def _paired(*arms: Scores) -> np.ndarray:
    """Stack arms into float64 [documents, arms]."""
    lengths = [len(arm) for arm in arms]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise HybridError(
            f"arms have {', '.join(map(str, lengths))} scores; a paired comparison needs the same documents in every "
            "arm; run the arms again"
        )
    return np.stack([np.asarray(arm, dtype=np.float64) for arm in arms], axis=1)


def _binary(scores: np.ndarray) -> np.ndarray:
    odd = scores[~np.isin(scores, (0.0, 1.0))]
    if odd.size:
        raise HybridError(f"found a score of {odd[0]:g}; scores must be 0 or 1; use a task that scores exact_match so")
    return scores
