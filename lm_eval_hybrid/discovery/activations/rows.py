"""Rows of activations, [n, d]: what the sweep reads, and those that lie in several tensors."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Activations [n, d]: a tensor, also a memory-mapped one, or whatever else reads the rows that it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The rows of a slice, or of a tensor of ascending numbers [m] int64: [m, d] of some float type."""


class JoinedRows:
    """The rows of several tensors, one after the other, or some of them.

    Of tensors that safetensors' `safe_open` gave, which are maps of their files, only the rows that are asked for are
    read; so memory is bounded by these, whatever the number of files. No file is kept open.

    Args:
        parts: each [some, d]; one at least.
        indices: ascending int64 [m]: the rows that there are to be; None: all.
    """

    def __init__(self, parts: Sequence[Tensor], indices: Tensor | None = None) -> None:
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts], dtype=torch.int64).cumsum(0)
        self._indices = torch.arange(int(self._ends[-1])) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The rows of a slice, or of ascending numbers [m] int64, copied.

        Raises:
            IndexError: for a row that is not there.
        """
        asked = self._indices[rows].contiguous()
        owners, counts = torch.searchsorted(self._ends, asked, right=True).unique_consecutive(return_counts=True)
        pieces = []
        for part, some in zip(owners.tolist(), asked.split(counts.tolist()), strict=True):
            first = self._ends[part - 1] if part else 0
            pieces.append(self._parts[part][some - first])
        return torch.cat(pieces) if pieces else self._parts[0][:0].clone()
