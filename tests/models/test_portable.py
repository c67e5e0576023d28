"""The room of functions that are sent to servers: its rules, its masks, its padding."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid import portable
from lm_eval_hybrid.portable.attention_masks import (
    Mask,
    MaskForm,
    branch_layout,
    branch_mask,
    causal_mask,
    pad_rows,
)

SHARED = 6  # cached columns
ROWS = [
    # A token's position, its branch, the position at which that leaves the row; position -1 is padding.
    [(2, 0, 2), (3, 0, 2), (4, 1, 4), (3, 2, 3), (4, 2, 3), (5, 2, 3)],
    [(0, 0, 0), (5, 1, 5), (6, 1, 5), (-1, -1, 0), (-1, -1, 0), (-1, -1, 0)],
    [(4, 0, 4), (4, 1, 4), (4, 2, 4), (4, 3, 4), (4, 4, 4), (-1, -1, 0)],
]
PADS = [0, 2, 5]  # of the cached columns, on the left
PLAIN: MaskForm = (torch.float32, None, ())


@pytest.mark.parametrize("path", sorted(Path(portable.__path__[0]).glob("*.py")), ids=lambda path: path.stem)
def test_modules_hold_plain_functions_and_import_nothing_else_of_ours(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "nnsight"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.ClassDef | ast.Lambda), ast.dump(node)
        if isinstance(node, ast.FunctionDef):
            assert not any(isinstance(inner, ast.FunctionDef) for inner in ast.walk(node) if inner is not node)
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            assert module.partition(".")[0] in allowed or module.startswith("lm_eval_hybrid.portable"), module


def seen(mask: Mask) -> Tensor:
    """[rows, queries, keys] bool; what is hidden has the lowest number of the dtype."""
    assert isinstance(mask, Tensor) and set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
    return mask[:, 0] == 0


def of_rows(form: MaskForm) -> Mask:
    positions, branch, forks = torch.tensor(ROWS).permute(2, 0, 1)
    keys = torch.arange(SHARED) - torch.tensor(PADS)[:, None]
    return branch_mask(positions, branch, forks, keys, form)


def naive(row: list[tuple[int, int, int]], pad: int, query: int, window: int | None) -> list[bool]:
    """Whether a token attends to each cached column, and then to each token of its row."""
    position, branch, fork = row[query]
    keys = [column - pad for column in range(SHARED)]
    near = [position - other < (window or 10**9) for other in [*keys, *(other for other, _, _ in row)]]
    past = [0 <= key < fork for key in keys]
    own = [b == branch and 0 <= p <= position for p, b, _ in row]
    return [a and b for a, b in zip(near, [*past, *own], strict=True)]


@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_may_have_its_own_branches(window: int | None, dtype: torch.dtype) -> None:
    found = seen(of_rows((dtype, window, ())))
    assert found.shape == (3, 6, SHARED + 6)
    expected = [[naive(row, pad, query, window) for query in range(6)] for row, pad in zip(ROWS, PADS, strict=True)]
    assert found.tolist() == expected


def test_branches_of_windows() -> None:
    branch, offset, fork, ends = branch_layout([1, 3, 2], torch.device("cpu"))
    assert branch.tolist() == [0, 1, 1, 1, 2, 2]
    assert offset.tolist() == [0, -2, -1, 0, -1, 0]
    assert fork.tolist() == [0, -2, -2, -2, -1, -1]
    assert ends.tolist() == [0, 3, 5]
    positions, forks, keys = torch.tensor([[5], [7]]) + offset, torch.tensor([[5], [7]]) + fork, torch.arange(7)[None]
    shared = branch_mask(positions, branch, forks, keys, PLAIN)
    assert torch.equal(seen(shared), seen(branch_mask(positions, branch.expand(2, -1), forks, keys, PLAIN)))


@pytest.mark.parametrize("window", [None, 2])
def test_causal_masks_hide_padding(window: int | None) -> None:
    keys = torch.arange(5) - torch.tensor([[0], [3]])
    found = seen(causal_mask(keys[:, 2:], keys, (torch.float32, window, ())))
    for row in range(2):
        for query, position in enumerate(keys[row, 2:].tolist()):
            expected = [0 <= key <= position and position - key < (window or 9) for key in keys[row].tolist()]
            assert found[row, query].tolist() == expected


def test_each_kind_of_layer_has_its_own_mask() -> None:
    found = of_rows((torch.float32, 2, ("full_attention", "sliding_attention")))
    assert isinstance(found, dict) and set(found) == {"full_attention", "sliding_attention"}
    for kind, window in (("full_attention", None), ("sliding_attention", 2)):
        assert torch.equal(seen(found[kind]), seen(of_rows((torch.float32, window, ()))))


def test_rows_are_padded_on_either_side() -> None:
    assert pad_rows([[1, 2], [3]]).tolist() == [[1, 2], [3, 0]]
    assert pad_rows([(1, 2), (3,)], left=True, fill=-1).tolist() == [[1, 2], [-1, 3]]
    assert pad_rows([[], []]).shape == (2, 0)
