"""Figures of how good categories are, without labels or a judge, and the score that they make.

Whatever finds categories is asked the same: of which category is each sentence, from several starts. Five figures, each
at most 1, are measured on held-out sentences; what they need to know of the categories is from the learned ones.

- `stability`: mean adjusted Rand index of the categories from any two starts. With too many or too few, there are
  several ways to split and to join.
- `silhouette`: mean of (b - a) / max(a, b), where a is a sentence's mean cosine distance from the others of its
  category, and b from the nearest other one (Rousseeuw 1987). It falls where one is split and where two are joined.
- `confidence`: mean of 1 - d / d', at least 0, where d is the distance of x from the mean of its category, and d' from
  the nearest other mean: how clear the choice is that decoding will make.
- `explained`: share of the variance of x that the means of the categories explain.
- `told`: share of the doubt about a sentence's words that its category removes, 1 - H(words | category) / H(words):
  cross-entropies under the learned frequencies, of each word whether it is there.

The score is the geometric mean of stability, silhouette, confidence and, twice, told: none makes up for another. These
are the paper's three questions without a judge (section 3.3): are held-out sentences put where they belong, do the
categories cover what is said, are they apart. Explained is shown, but does not count: it grows with the size, and at an
early layer geometry alone is always the better, for at the onset of a sentence the residual there is little more than
the last token, in tight clumps that foretell nothing. Words are what layers can be compared by.

Where there is one start, stability is None and no part of the score; as seeds are the same for all that a sweep
compares, scores still compare. Where all sentences are in one category, silhouette and confidence are 0: it tells
nothing from anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from torch import Tensor

LEAST = 1e-3  # that a part of the score counts for: else the others would not compare where one is nowhere above 0

Starts = Sequence[tuple[Tensor, Tensor]]
"""Of each start: the categories, int64, of learned [m] and of held-out [h] sentences."""


@dataclass(frozen=True)
class Figures:
    """What is measured of one way to find categories; see the module. Of the start whose means explain most of x.

    Attributes:
        stability: None where there is one start.
        empty: categories that no learned sentence is of.
        smallest: share of the learned sentences that are of the smallest category.
        start: number of the start, from 0.
    """

    stability: float | None
    silhouette: float
    confidence: float
    explained: float
    told: float
    empty: int
    smallest: float
    start: int

    @property
    def score(self) -> float:
        """The geometric mean of the parts that there are, told twice."""
        known = () if self.stability is None else (self.stability,)
        parts = (*known, self.silhouette, self.confidence, self.told, self.told)
        return prod(max(part, LEAST) for part in parts) ** (1 / len(parts))


@dataclass(frozen=True)
class Points:
    """What figures are measured on.

    Attributes:
        learned: x of learned sentences, [m, d] float32.
        held_out: x of others, [h, d] float32, each of norm 1.
        words: which of some words they have, [m, w] and [h, w] float32, 0 or 1 (`words.said`).
    """

    learned: Tensor
    held_out: Tensor
    words: tuple[Tensor, Tensor]

    def figures(self, starts: Starts, size: int) -> Figures:
        """The figures of categories 0 to `size` - 1, found from one start or more."""
        explained = [self.explained(ours, ours, size, self.learned) for ours, _ in starts]
        start = max(range(len(starts)), key=explained.__getitem__)
        ours, others = starts[start]
        count = ours.bincount(minlength=size)
        return Figures(
            stability=stability([others for _, others in starts]),
            silhouette=silhouette(self.held_out, others, size),
            confidence=self.confidence(ours, others, size),
            explained=self.explained(ours, others, size, self.held_out),
            told=told(*self.words, ours, others, size),
            empty=int((count == 0).sum()),
            smallest=float(count.min()) / len(ours),
            start=start,
        )

    def explained(self, ours: Tensor, category: Tensor, size: int, points: Tensor) -> float:
        """Share of the variance of `points`, of these categories, that the learned categories' means explain.

        Variance is about the learned mean; 0 where there is none.
        """
        centre = self.learned.mean(0)
        # A category that no learned sentence is of has no mean, and explains nothing.
        means = torch.where((ours.bincount(minlength=size) > 0)[:, None], _means(self.learned, ours, size), centre)
        total = (points - centre).square().sum()
        return 1 - float((points - means[category]).square().sum() / total) if total > 0 else 0.0

    def confidence(self, ours: Tensor, others: Tensor, size: int) -> float:
        """See the module; 0 where there is no mean to be nearest to, or no other."""
        distance = torch.cdist(self.held_out, _means(self.learned, ours, size)).nan_to_num(torch.inf)
        own = distance.gather(1, others[:, None])[:, 0]
        nearest = distance.scatter(1, others[:, None], torch.inf).min(1).values
        clear = torch.where(own.isfinite() & nearest.isfinite() & (own < nearest), 1 - own / nearest, 0.0)
        return float(clear.mean())


def stability(categories: Sequence[Tensor]) -> float | None:
    """Mean adjusted Rand index of any two of the assignments, each [n] int64; None where there is one."""
    from sklearn.metrics import adjusted_rand_score

    indices = [adjusted_rand_score(one, other) for one, other in combinations(categories, 2)]
    return float(sum(indices) / len(indices)) if indices else None


def silhouette(unit: Tensor, category: Tensor, size: int) -> float:
    """Mean silhouette of points of norm 1 [n, d] in categories [n], by cosine distance; 0 where all are in one.

    Exact, and without n * n distances: of vectors of norm 1 the mean cosine distance from a category's is 1 minus the
    product with their mean.
    """
    count = category.bincount(minlength=size)
    others = (count[category] - 1)[:, None]
    totals = _totals(unit, category, size)
    along = unit @ totals.T
    own = 1 - (along.gather(1, category[:, None]) - 1) / others.clamp(min=1)
    apart = (1 - along / count).masked_fill(count == 0, torch.inf).scatter(1, category[:, None], torch.inf)
    nearest = apart.min(1, keepdim=True).values
    if not nearest.isfinite().all():
        return 0.0
    largest = torch.maximum(own, nearest)
    # Alone in its category, or all at one place: by convention 0.
    return float(torch.where((others > 0) & (largest > 0), (nearest - own) / largest, 0.0).mean())


def told(learned: Tensor, held_out: Tensor, ours: Tensor, others: Tensor, size: int) -> float:
    """1 - H(words | category) / H(words), of held-out sentences; 0 where there are no words.

    A category's frequency of a word is (its sentences with it + f) / (its sentences + 1), where f is the word's
    frequency among all; so a small category has to earn what it tells.

    Args:
        learned, held_out: which words the sentences have, [m, w] and [h, w], 0 or 1.
        ours, others: their categories, [m] and [h] int64.
    """
    # In float64: of a word that all of many sentences have, float32 makes a certainty, which one without it refutes.
    learned, held_out = learned.double(), held_out.double()
    anywhere = (learned.sum(0) + 0.5) / (len(learned) + 1)
    within = (_totals(learned, ours, size) + anywhere) / (ours.bincount(minlength=size)[:, None] + 1)
    having, count = _totals(held_out, others, size), others.bincount(minlength=size)[:, None]

    def doubt(frequency: Tensor) -> float:
        return -float((having * frequency.log() + (count - having) * (1 - frequency).log()).sum())

    return 1 - doubt(within) / doubt(anywhere) if learned.numel() else 0.0


def _totals(rows: Tensor, category: Tensor, size: int) -> Tensor:
    return rows.new_zeros(size, rows.shape[1]).index_add_(0, category, rows)


def _means(rows: Tensor, category: Tensor, size: int) -> Tensor:
    """[size, d]; not a number where a category is empty."""
    return _totals(rows, category, size) / category.bincount(minlength=size)[:, None]
