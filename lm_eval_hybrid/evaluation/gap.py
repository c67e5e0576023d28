"""Accuracy, gap recovered and paired differences, each with a 95% interval.

Gap recovered is (treated - base) / (thinking - base): 0 is the base model, 1 the thinking model. It is
signed and never clipped: an arm that hurts is below 0, one that beats the thinking model above 1. Its
interval is a paired bootstrap over documents: a resample draws documents, and every arm is scored on the
same draw.

The bootstrap does not draw indices. Documents on which all arms scored alike are interchangeable, and how
often each such pattern of scores occurs in a resample is multinomial; drawing those counts gives the same
distribution in a few columns instead of one per document, whatever the order of the documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lm_eval_hybrid.errors import HybridError

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


def accuracy(scores: Scores) -> Accuracy:
    """Mean of per-document scores (0 or 1) with Wilson's interval (Wilson 1927).

    The interval stays inside [0, 1] and does not shrink to a point where every document is right or wrong.

    Raises:
        HybridError: no scores, or a score that is neither 0 nor 1.
    """
    (column,) = _paired(scores).T
    if not np.isin(column, (0.0, 1.0)).all():
        odd = column[~np.isin(column, (0.0, 1.0))][0]
        raise HybridError(f"accuracy needs scores of 0 or 1; found {odd:g}; use a task that scores exact_match so")
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
    would narrow the interval; each counts as beyond both ends. Where they reach a tail's worth (2.5%), the
    interval is undefined.

    Args:
        base, treated, thinking: per-document scores, shape [documents], in the same order of documents.
        seed: of the bootstrap; the same seed and scores give the same interval.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    scores = _paired(base, treated, thinking)
    documents = len(scores)
    # Sums, not means: integers of 0/1 scores compare exactly.
    total_base, total_treated, total_thinking = scores.sum(axis=0)
    if total_thinking <= total_base:
        return Gap(None, None, None, documents, "thinking is not above base")
    recovered = float((total_treated - total_base) / (total_thinking - total_base))

    sums = _resampled_sums(scores, seed)
    opening = sums[:, 2] - sums[:, 0]
    closed = opening <= 0
    if closed.mean() >= TAIL:
        reason = f"no interval: thinking is not above base in {closed.mean():.1%} of resamples"
        return Gap(recovered, None, None, documents, reason)
    ratios = (sums[:, 1] - sums[:, 0]) / np.where(closed, 1.0, opening)
    low = _quantile(np.where(closed, -np.inf, ratios), TAIL)
    high = _quantile(np.where(closed, np.inf, ratios), 1 - TAIL)
    return Gap(recovered, low, high, documents)


def difference(scores: Scores, other: Scores, seed: int = 0) -> Difference:
    """Mean of `scores` minus mean of `other` (shapes [documents], in the same order), by paired bootstrap.

    Raises:
        HybridError: no scores, or arms of different lengths.
    """
    paired = _paired(scores, other)
    documents = len(paired)
    sums = _resampled_sums(paired, seed)
    resampled = (sums[:, 0] - sums[:, 1]) / documents
    value = float((paired[:, 0].sum() - paired[:, 1].sum()) / documents)
    return Difference(value, _quantile(resampled, TAIL), _quantile(resampled, 1 - TAIL), documents)


def _paired(*arms: Scores) -> np.ndarray:
    """Stack arms into float64 [documents, arms]."""
    lengths = [len(arm) for arm in arms]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        found = ", ".join(map(str, lengths))
        raise HybridError(
            f"a paired comparison needs the same documents in every arm; found {found} scores; run the arms again"
        )
    return np.stack([np.asarray(arm, dtype=np.float64) for arm in arms], axis=1)


def _resampled_sums(scores: np.ndarray, seed: int) -> np.ndarray:
    """Sums per arm over bootstrap resamples of documents: [documents, arms] -> [RESAMPLES, arms]."""
    patterns, counts = np.unique(scores, axis=0, return_counts=True)
    documents = len(scores)
    draws = np.random.default_rng(seed).multinomial(documents, counts / documents, size=RESAMPLES)
    return draws @ patterns


def _quantile(values: np.ndarray, share: float) -> float:
    """Smallest value that at least `share` of `values` do not exceed; never a mean of two."""
    return float(np.quantile(values, share, method="inverted_cdf"))
