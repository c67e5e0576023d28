from itertools import combinations
from math import isfinite, log

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.discovery.taxonomy import metrics as module
from lm_eval_hybrid.discovery.taxonomy.metrics import (
    LEAST,
    EvaluationSet,
    TaxonomyMetrics,
    silhouette,
    stability,
    word_information,
    word_tables,
)

SIZE = 4


@pytest.fixture
def drawn() -> tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]:
    """Points in loose groups, words that depend on the groups, and three assignments that partly agree."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    centres, frequencies = torch.randn(SIZE, 8, generator=generator), rand(SIZE, 6)
    true = [torch.randint(SIZE, (count,), generator=generator) for count in (90, 60)]
    units = [F.normalize(centres[side] + torch.randn(len(side), 8, generator=generator), dim=-1) for side in true]
    words = tuple((rand(len(side), 6) < frequencies[side]).float() for side in true)
    starts = [tuple(torch.where(rand(len(side)) < 0.8, side, (side + 1) % SIZE) for side in true) for _ in range(3)]
    return EvaluationSet(*units, words), starts


def means(points: EvaluationSet, ours: Tensor) -> list[Tensor]:
    return [points.learned[ours == category].mean(0) for category in range(SIZE)]


def test_stability_is_the_mean_over_pairs(drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]) -> None:
    points, starts = drawn
    indices = [adjusted_rand_score(a[1], b[1]) for a, b in combinations(starts, 2)]
    assert len(indices) == 3 and 0.1 < min(indices) < max(indices) < 1
    assert points.measure(starts, SIZE).stability == pytest.approx(sum(indices) / 3)


def test_stability_ignores_how_categories_are_numbered() -> None:
    one = torch.tensor([0, 0, 1, 1, 2, 2])
    assert stability([one, (one + 1) % 3]) == pytest.approx(1.0)
    assert stability([one]) is None


@pytest.mark.parametrize("size", [SIZE, SIZE + 3])
def test_silhouette_is_that_of_scikit_learn(
    drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]], size: int
) -> None:
    points, starts = drawn
    others = starts[0][1].clone()
    others[5] = size - 1 if size > SIZE else others[5]  # alone there
    expected = silhouette_score(points.held_out.double(), others, metric="cosine")
    assert silhouette(points.held_out, others, size) == pytest.approx(float(expected), abs=1e-5)


def test_silhouette_of_one_category_is_0(drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]) -> None:
    points, _ = drawn
    assert silhouette(points.held_out, torch.zeros(60, dtype=torch.int64), SIZE) == 0.0


def test_confidence_equals_a_plain_loop(drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]) -> None:
    points, starts = drawn
    ours, others = starts[0]
    centres, total = means(points, ours), 0.0
    for x, category in zip(points.held_out, others.tolist(), strict=True):
        distances = [float((x - centre).norm()) for centre in centres]
        own = distances.pop(category)
        total += max(0.0, 1 - own / min(distances))
    assert points.confidence(ours, others, SIZE) == pytest.approx(total / 60, abs=1e-5)


def test_explained_equals_a_plain_loop(drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]) -> None:
    points, starts = drawn
    ours, others = starts[0]
    centres, centre = means(points, ours), points.learned.mean(0)
    left = sum(float((x - centres[c]).square().sum()) for x, c in zip(points.held_out, others.tolist(), strict=True))
    total = sum(float((x - centre).square().sum()) for x in points.held_out)
    assert points.explained(ours, others, SIZE, points.held_out) == pytest.approx(1 - left / total, abs=1e-5)


def test_word_information_equals_a_plain_loop(
    drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]],
) -> None:
    points, starts = drawn
    (learned, held_out), (ours, others) = points.words, starts[0]
    blind = knowing = 0.0
    for has, category in zip(held_out.tolist(), others.tolist(), strict=True):
        members = learned[ours == category]
        for word, there in enumerate(has):
            anywhere = (float(learned[:, word].sum()) + 0.5) / (90 + 1)
            within = (float(members[:, word].sum()) + anywhere) / (len(members) + 1)
            blind -= log(anywhere if there else 1 - anywhere)
            knowing -= log(within if there else 1 - within)
    assert word_information(learned, held_out, ours, others, SIZE) == pytest.approx(1 - knowing / blind, abs=1e-5)
    assert 0.02 < 1 - knowing / blind < 0.9


def test_word_information_is_finite_for_a_word_that_all_sentences_have() -> None:
    """In float32 the frequency of the first word among 5,000 would be 1, and that of its absence 0."""
    learned, ours = torch.ones(5000, 2), torch.zeros(5000, dtype=torch.int64)
    learned[::2, 1] = 0
    ours[::2] = 1
    assert 0.9 < word_information(learned, learned, ours, ours, 2) < 1
    held_out = learned.clone()
    held_out[0, 0] = 0
    assert isfinite(word_information(learned, held_out, ours, ours, 2))


def test_word_information_is_0_without_words() -> None:
    category = torch.tensor([0, 1])
    assert word_information(torch.zeros(2, 0), torch.zeros(2, 0), category, category, 2) == 0.0


def test_the_start_that_explains_most_is_measured(drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]]) -> None:
    points, starts = drawn
    shuffled = tuple(side[torch.randperm(len(side))] for side in starts[0])
    found = points.measure([shuffled, starts[1]], SIZE)
    assert found.start == 1
    assert found.silhouette == points.measure([starts[1]], SIZE).silhouette


def test_empty_categories_are_counted_and_explain_nothing(
    drawn: tuple[EvaluationSet, list[tuple[Tensor, Tensor]]],
) -> None:
    points, starts = drawn
    ours, others = starts[0]
    found = points.measure([(ours, others)], SIZE + 2)
    assert (found.empty, found.smallest) == (2, 0.0)
    assert found.explained == pytest.approx(points.explained(ours, others, SIZE, points.held_out))
    assert found.confidence == pytest.approx(points.confidence(ours, others, SIZE))
    lost = points.measure([(ours, torch.full_like(others, SIZE))], SIZE + 2)
    assert (lost.confidence, lost.silhouette) == (0.0, 0.0)
    assert lost.explained == pytest.approx(0.0, abs=1e-6)
    assert points.measure(starts[:1], SIZE).smallest == min(starts[0][0].bincount().tolist()) / 90


def test_the_score_is_a_geometric_mean() -> None:
    metrics = TaxonomyMetrics(0.5, 0.4, 0.3, 0.9, 0.2, empty=0, smallest=0.1, start=0)
    assert metrics.score == pytest.approx((0.5 * 0.4 * 0.3 * 0.2 * 0.2) ** (1 / 5))
    alone = TaxonomyMetrics(None, 0.4, 0.3, 0.9, 0.2, empty=0, smallest=0.1, start=0)
    assert alone.score == pytest.approx((0.4 * 0.3 * 0.2 * 0.2) ** (1 / 4))
    worst = TaxonomyMetrics(-0.1, -0.4, 0.0, 0.0, -1.0, empty=0, smallest=0.1, start=0)
    assert worst.score == pytest.approx(LEAST)


def test_words_punctuation_and_numbers_are_predicted() -> None:
    learned, held_out = word_tables(["So 3 + 4.", "So 17!", "Wait"], ["so, 5", "never"])
    # Twice or more: so, number.
    assert learned.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert held_out.tolist() == [[1, 1], [0, 0]]


def test_the_most_frequent_words_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS", 1)
    learned, _ = word_tables(["a b", "b a", "b"], [])
    assert learned.tolist() == [[1], [1], [1]]


def test_no_frequent_words_make_an_empty_table() -> None:
    learned, held_out = word_tables(["one", "two"], ["three"])
    assert learned.shape == (2, 0) and held_out.shape == (1, 0)


def test_equally_frequent_words_keep_their_order() -> None:
    """The order does not depend on the hash seed."""
    asked = list("kigecaljhfdb")
    _, held_out = word_tables([" ".join(asked)] * 2, asked)
    assert held_out.argmax(-1).tolist() == list(range(12))
