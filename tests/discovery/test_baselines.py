from collections.abc import Iterator

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from lm_eval_hybrid.discovery.taxonomy.autoencoders import SaeRecipe, unit_rows
from lm_eval_hybrid.discovery.taxonomy.metrics import EvaluationSet
from lm_eval_hybrid.discovery.taxonomy.sweep import baseline_assignments
from tests.discovery.clusters import clusters

RECIPE = SaeRecipe(layers=(0,), sizes=(5, 3), k=1, seeds=2, dimensions=4)


def points(noise: float = 0.05) -> tuple[EvaluationSet, torch.Tensor]:
    rows, labels = clusters(300, noise=noise)
    unit = unit_rows(rows, rows.mean(0))
    return EvaluationSet(unit[:200], unit[200:], (torch.zeros(200, 0), torch.zeros(100, 0))), labels


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["k-means", "gmm"])
def test_categories_are_those_of_the_clusters(method: str) -> None:
    some, labels = points()
    right, fewer = baseline_assignments(method, some, RECIPE, seed=0)
    assert len(right) == len(fewer) == 2
    for ours, others in right:
        assert ours.dtype == others.dtype == torch.int64
    # Of two starts one at least is lucky.
    best = max(right, key=lambda start: some.explained(start[0], start[0], 5, some.learned))
    assert adjusted_rand_score(best[0], labels[:200]) == adjusted_rand_score(best[1], labels[200:]) == 1.0
    assert {len(ours.unique()) for ours, _ in fewer} == {3}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("method", ["k-means", "gmm"])
def test_results_do_not_depend_on_the_number_of_threads(method: str) -> None:
    some, _ = points(noise=2.0)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([start for starts in baseline_assignments(method, some, RECIPE, seed=-1) for start in starts])
        assert torch.get_num_threads() == threads
    assert all(torch.equal(a, b) for one, two in zip(*found, strict=True) for a, b in zip(one, two, strict=True))
    different = [start for starts in baseline_assignments(method, some, RECIPE, seed=5) for start in starts]
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(found[0], different, strict=True))


@pytest.mark.filterwarnings("error")
def test_fewer_distinct_points_than_categories_are_allowed() -> None:
    unit = unit_rows(clusters(4)[0].repeat(10, 1), torch.zeros(24))
    few = EvaluationSet(unit, unit[:4], (torch.zeros(40, 0), torch.zeros(4, 0)))
    for method in ("k-means", "gmm"):
        for starts in baseline_assignments(method, few, RECIPE, seed=0):
            assert all(len(ours.unique()) <= 5 for ours, _ in starts)
