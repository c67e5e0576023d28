import pytest
import torch

from lm_eval_hybrid.portable.attention_masks import Branches, Mask, Masks

SHARED = 6  # columns of the past
ROWS = [
    # A token's column, its branch, the column at which that leaves the row; column -1 is padding.
    [(2, 0, 2), (3, 0, 2), (4, 1, 4), (3, 2, 3), (4, 2, 3), (5, 2, 3)],
    [(0, 0, 0), (5, 1, 5), (6, 1, 5), (-1, -1, 0), (-1, -1, 0), (-1, -1, 0)],
    [(4, 0, 4), (4, 1, 4), (4, 2, 4), (4, 3, 4), (4, 4, 4), (-1, -1, 0)],
]


def branches(rows: list[list[tuple[int, int, int]]]) -> Branches:
    columns, branch, forks = torch.tensor(rows).permute(2, 0, 1)
    return Branches(columns, branch, torch.tensor([], dtype=torch.int64), forks, SHARED)


def seen(mask: Mask) -> torch.Tensor:
    """[rows, queries, keys] bool; what is not seen has the smallest number there is."""
    assert isinstance(mask, torch.Tensor) and set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
    return mask[:, 0] == 0


def naive(row: list[tuple[int, int, int]], query: int, window: int | None) -> list[bool]:
    """Whether a token sees each column of the past, and then each token of its row."""
    column, branch, fork = row[query]
    near = [column - other < (window or 10**9) for other in [*range(SHARED), *(other for other, _, _ in row)]]
    past = [other < fork for other in range(SHARED)]
    own = [b == branch and 0 <= c <= column for c, b, _ in row]
    return [a and b for a, b in zip(near, [*past, *own], strict=True)]


@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_may_have_branches_of_their_own(window: int | None, dtype: torch.dtype) -> None:
    found = seen(Masks(dtype, window).branching(branches(ROWS)))
    assert found.shape == (3, 6, SHARED + 6)
    assert found.tolist() == [[naive(row, query, window) for query in range(6)] for row in ROWS]


def test_branches_of_all_rows_are_those_of_each() -> None:
    shared = Branches.of([5, 7, 2], [1, 3, 2], torch.device("cpu"))
    own = Branches(shared.columns, shared.branch.expand(3, -1), shared.ends, shared.forks, shared.shared)
    masks = Masks(torch.float32)
    assert torch.equal(masks.branching(shared), masks.branching(own))


def test_kinds_of_layers_have_masks_of_their_own() -> None:
    found = Masks(torch.float32, 2, ("full_attention", "sliding_attention")).branching(branches(ROWS))
    assert isinstance(found, dict) and set(found) == {"full_attention", "sliding_attention"}
    for kind, window in (("full_attention", None), ("sliding_attention", 2)):
        assert torch.equal(seen(found[kind]), seen(Masks(torch.float32, window).branching(branches(ROWS))))
