import pytest
import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.findings import map_points, transitions


def test_transitions_are_counted_within_a_trace_only() -> None:
    trace = torch.tensor([0, 0, 0, 1, 1, 4])
    category = torch.tensor([0, 2, 2, 0, 2, 1])
    assert transitions(trace, category, 3).tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 1]]
    for few in (0, 1):
        assert transitions(trace[:few], category[:few], 2).tolist() == [[0, 0], [0, 0]]


def test_a_map_keeps_neighbours_together_and_is_the_same_again() -> None:
    random = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 16, generator=random)
    category = torch.arange(60) % 3
    x = centres[category] + torch.randn(60, 16, generator=random)
    found = map_points(x, seed=1)
    assert found.shape == (60, 2) and found.dtype == torch.float32
    nearest = (torch.cdist(found, found) + torch.eye(60) * 1e9).argmin(1)
    assert torch.equal(category[nearest], category)
    assert torch.equal(found, map_points(x, seed=1))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (9, 1), (12, 1), (12, 2), (5, 40), (3, 0)])
def test_a_map_of_few_points_or_axes_is_made_all_the_same(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    found = map_points(x, seed=0)
    assert found.shape == (shape[0], 2) and found.isfinite().all()


def test_points_that_are_all_the_same_lie_at_one_place() -> None:
    assert torch.equal(map_points(torch.full((50, 8), 0.3), seed=0), torch.zeros(50, 2))
    same_but_one = torch.zeros(50, 8)
    same_but_one[0] = 1
    assert map_points(same_but_one, seed=0).isfinite().all()


def test_a_map_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(HybridError, match="numbers"):
        map_points(torch.tensor([[0.0], [float("nan")]]), seed=0)
