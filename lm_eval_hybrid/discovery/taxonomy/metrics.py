"""Metrics of a taxonomy without labels or a judge, and the score that they make.

Every method that finds categories is measured alike: by the category of each sentence, from several starts. There are
five metrics, each at most 1, of held-out sentences; what they need to know of the categories comes from learned ones.

- `stability`: mean adjusted Rand index between the categories of any two starts. With too many or too few categories,
  there are several ways to split and to join them.
- `silhouette`: mean of (b - a) / max(a, b), where a is a sentence's mean cosine distance from the others of its
  category, and b from the nearest other category (Rousseeuw 1987). It falls if one is split and if two are joined.
- `confidence`: mean of 1 - d / d', at least 0, where d is the distance of x from the mean of its category, and d' from
  the nearest other mean: how clear the choice is that decoding will make.
- `explained`: share of the variance of x that the means of the categories explain.
- `word_information` (`told` in files): share of the uncertainty about a sentence's words that its category
  removes, 1 - H(words | category) / H(words): cross-entropies, under the learned frequencies, of whether each word
  occurs.

The score is the geometric mean of stability, silhouette, confidence and, twice, word information, so none makes
up for another. These stand for the paper's three questions (section 3.3) without a judge: are held-out sentences put
where they belong, do the categories cover what is said, are they distinct. `explained` does not count: it grows with
the size, and by geometry alone an early layer always wins, because the residual at the onset of a sentence is there
little more than the last token, in tight clusters that predict nothing. Layers can be compared by words.

With one start, stability is None and no part of the score; a sweep uses the same number of starts everywhere, so its
scores still compare. If all sentences have one category, silhouette and confidence are 0.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from torch import Tensor

LEAST = 1e-3  # lower limit of a metric in the score, so that the others still count where one is 0
WORDS = 500  # at most so many words are predicted
FREQUENT = 0.01  # share of the learned sentences that must have a word for it to be predicted
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")

Assignments = Sequence[tuple[Tensor, Tensor]]
"""For each start, the categories, int64, of learned [m] and of held-out [h] sentences."""


@dataclass(frozen=True)
class TaxonomyMetrics:
    """The metrics of one taxonomy (see the module), from the start whose means explain most of the learned variance.

    Attributes:
        stability: None with one start.
        empty: number of categories without learned sentences.
        smallest: share of the learned sentences that the smallest category has.
        start: number of the start, from 0.
    """

    stability: float | None
    silhouette: float
    confidence: float
    explained: float
    word_information: float
    empty: int
    smallest: float
    start: int

    @property
    def score(self) -> float:
        """The geometric mean of all known parts, with word information twice."""
        known = () if self.stability is None else (self.stability,)
        parts = (*known, self.silhouette, self.confidence, self.word_information, self.word_information)
        return prod(max(part, LEAST) for part in parts) ** (1 / len(parts))


@dataclass(frozen=True)
class EvaluationSet:
    """The sentences that taxonomies are measured on.

    Attributes:
        learned: x of learned sentences, [m, d] float32.
        held_out: x of other sentences, [h, d] float32, each of norm 1.
        words: which words they have, [m, w] and [h, w] float32, 0 or 1; see `word_tables`.
    """

    learned: Tensor
    held_out: Tensor
    words: tuple[Tensor, Tensor]

    def measure(self, assignments: Assignments, size: int) -> TaxonomyMetrics:
        """The metrics of categories 0 to `size` - 1, from one start or more."""
        explained = [self.explained(learned, learned, size, self.learned) for learned, _ in assignments]
        start = max(range(len(assignments)), key=explained.__getitem__)
        learned, held_out = assignments[start]
        count = learned.bincount(minlength=size)
        return TaxonomyMetrics(
            stability=stability([held_out for _, held_out in assignments]),
            silhouette=silhouette(self.held_out, held_out, size),
            confidence=self.confidence(learned, held_out, size),
            explained=self.explained(learned, held_out, size, self.held_out),
            word_information=word_information(*self.words, learned, held_out, size),
            empty=int((count == 0).sum()),
            smallest=float(count.min()) / len(learned),
            start=start,
        )

    def explained(self, learned: Tensor, category: Tensor, size: int, points: Tensor) -> float:
        """Share of the variance of `points`, which have these categories, that the learned categories' means explain.

        Variance is about the learned mean; 0 if there is none.
        """
        centre = self.learned.mean(0)
        # A category without learned sentences has no mean, and explains nothing.
        has_mean = (learned.bincount(minlength=size) > 0)[:, None]
        means = torch.where(has_mean, _means(self.learned, learned, size), centre)
        total = (points - centre).square().sum()
        return 1 - float((points - means[category]).square().sum() / total) if total > 0 else 0.0

    def confidence(self, learned: Tensor, held_out: Tensor, size: int) -> float:
        """See the module; 0 for a sentence whose category has no mean, and if there is no other."""
        distance = torch.cdist(self.held_out, _means(self.learned, learned, size)).nan_to_num(torch.inf)
        own = distance.gather(1, held_out[:, None])[:, 0]
        nearest = distance.scatter(1, held_out[:, None], torch.inf).min(1).values
        clear = torch.where(own.isfinite() & nearest.isfinite() & (own < nearest), 1 - own / nearest, 0.0)
        return float(clear.mean())


def stability(categories: Sequence[Tensor]) -> float | None:
    """Mean adjusted Rand index of any two assignments, each [n] int64; None if there is one."""
    from sklearn.metrics import adjusted_rand_score

    indices = [adjusted_rand_score(one, other) for one, other in combinations(categories, 2)]
    return float(sum(indices) / len(indices)) if indices else None


def silhouette(unit: Tensor, category: Tensor, size: int) -> float:
    """Mean silhouette by cosine distance of points of norm 1 [n, d] in categories [n]; 0 if all are in one.

    Exact, and without n * n distances: for vectors of norm 1 the mean cosine distance from a category's is 1 minus the
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
    # By convention 0 for a point alone in its category, and if all points coincide.
    return float(torch.where((others > 0) & (largest > 0), (nearest - own) / largest, 0.0).mean())


def word_information(
    learned_words: Tensor, held_out_words: Tensor, learned: Tensor, held_out: Tensor, size: int
) -> float:
    """1 - H(words | category) / H(words), of held-out sentences; 0 if there are no words.

    A word's frequency in a category is (its sentences with the word + f) / (its sentences + 1), where f is the word's
    frequency in all sentences; so a small category cannot gain from a few chance words.

    Args:
        learned_words, held_out_words: which words the sentences have, [m, w] and [h, w], 0 or 1.
        learned, held_out: categories of the sentences, [m] and [h] int64.
    """
    # float64: if all of many sentences have a word, float32 makes that certain, and one without it would refute it.
    learned_words, held_out_words = learned_words.double(), held_out_words.double()
    overall = (learned_words.sum(0) + 0.5) / (len(learned_words) + 1)
    within = (_totals(learned_words, learned, size) + overall) / (learned.bincount(minlength=size)[:, None] + 1)
    having, count = _totals(held_out_words, held_out, size), held_out.bincount(minlength=size)[:, None]

    def cross_entropy(frequency: Tensor) -> float:
        return -float((having * frequency.log() + (count - having) * (1 - frequency).log()).sum())

    return 1 - cross_entropy(within) / cross_entropy(overall) if learned_words.numel() else 0.0


def word_tables(learned: Sequence[str], held_out: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which of the learned sentences' most frequent words the sentences have: [m, w] and [h, w] float32, 0 or 1.

    Punctuation marks count as words, and all numbers as one. Equally frequent words keep the order of their first
    occurrence.
    """
    sets = [_words(sentence) for sentence in learned]
    frequent = Counter(word for words in sets for word in words).most_common(WORDS)
    words = [word for word, count in frequent if count >= max(2, FREQUENT * len(sets))]
    return _table(sets, words), _table([_words(sentence) for sentence in held_out], words)


def _words(sentence: str) -> dict[str, None]:
    """The sentence's words, in its order: a set's order would differ from run to run."""
    return dict.fromkeys("0" if word.isdigit() else word.lower() for word in _WORD.findall(sentence))


def _table(sentences: Sequence[dict[str, None]], words: Sequence[str]) -> Tensor:
    table = [[float(word in own) for word in words] for own in sentences]
    return torch.tensor(table).reshape(len(sentences), len(words))


def _totals(rows: Tensor, category: Tensor, size: int) -> Tensor:
    return rows.new_zeros(size, rows.shape[1]).index_add_(0, category, rows)


def _means(rows: Tensor, category: Tensor, size: int) -> Tensor:
    """[size, d]; NaN for an empty category."""
    return _totals(rows, category, size) / category.bincount(minlength=size)[:, None]
