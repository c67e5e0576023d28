from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lm_eval_hybrid.discovery.activations.store import JoinedRows


@pytest.fixture
def parts() -> list[Tensor]:
    return list(torch.arange(60.0).reshape(20, 3).split([6, 0, 9, 1, 4]))


INDICES = torch.tensor([0, 5, 6, 7, 14, 15, 16, 19])


@pytest.mark.parametrize("indices", [None, INDICES])
@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(2, 7),
        slice(5, 100),
        slice(3, 3),
        slice(-3, None),
        slice(0, None, 2),
        torch.tensor([0, 1, 5, 7]),
        torch.tensor([3]),
        torch.tensor([2, 2]),
        torch.tensor([], dtype=torch.int64),
    ],
)
def test_rows_equal_those_of_the_joined_parts(
    parts: list[Tensor], indices: Tensor | None, rows: slice | Tensor
) -> None:
    joined = torch.cat(parts) if indices is None else torch.cat(parts)[indices]
    found = JoinedRows(parts, indices)
    assert len(found) == len(joined)
    assert torch.equal(found[rows], joined[rows])


def test_rows_are_copies(parts: list[Tensor]) -> None:
    found = JoinedRows(parts)
    found[0:2].zero_()
    assert torch.equal(found[:], torch.arange(60.0).reshape(20, 3))


def test_a_missing_row_is_an_index_error(parts: list[Tensor]) -> None:
    for found in (JoinedRows(parts), JoinedRows(parts, torch.tensor([19, 20]))):
        with pytest.raises(IndexError):
            found[torch.tensor([1, 20])]
    with pytest.raises(IndexError):
        JoinedRows(parts, torch.tensor([19, 20]))[:]


def test_rows_of_files_take_little_memory_and_no_open_files(tmp_path: Path) -> None:
    for number in range(20):
        save_file({"rows": torch.full((1000, 1024), float(number))}, tmp_path / f"{number}.safetensors")
    process = psutil.Process()
    memory, files = process.memory_info().rss, process.num_fds()
    parts = []
    for number in range(20):
        with safe_open(tmp_path / f"{number}.safetensors", framework="pt") as file:
            parts.append(file.get_tensor("rows"))
    found = JoinedRows(parts)
    some = found[torch.arange(0, 20000, 1000)]
    assert torch.equal(some[:, 0], torch.arange(20.0))
    assert process.num_fds() == files
    # All is 80 MB. A touched page brings neighbours with it.
    assert process.memory_info().rss - memory < 20e6
