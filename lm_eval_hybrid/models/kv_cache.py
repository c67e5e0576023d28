"""A KV cache, and a cache of residuals, for rows that grow at different paces.

A token's column is its position, from 0, without padding: a rewind only forgets a length, and a finished row makes room
for another without a copy. Columns beyond a row's length hold stale values, which the masks hide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SPARE = 64  # extra columns in a new buffer, so that appending a column seldom copies the old ones


@dataclass(frozen=True)
class CacheColumns:
    """The cells that a pass writes: n new columns of each of m rows.

    Attributes:
        rows: [m] int64.
        all_rows: whether `rows` are all the rows of the cache, in order.
        starts: the first new column of each row.
        columns: [m, n] int64.
    """

    rows: Tensor
    all_rows: bool
    starts: tuple[int, ...]
    columns: Tensor

    @classmethod
    def after(
        cls, lengths: Sequence[int], n: int, device: torch.device, rows: Sequence[int] | None = None
    ) -> "CacheColumns":
        """The next n columns of some rows (None: all), which have these lengths."""
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(n, device=device)
        listed = torch.arange(len(lengths), device=device) if rows is None else torch.tensor(rows, device=device)
        return cls(listed, rows is None, tuple(lengths), columns)

    @property
    def end(self) -> int:
        """Columns of the longest row after the pass."""
        return max(self.starts) + self.columns.shape[1]

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """([m, 1], [m, n]) int64: rows and columns to index a buffer with."""
        return self.rows.to(device)[:, None], self.columns.to(device)


class Grid:
    """A tensor [rows, heads, columns, d] that grows along its columns."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._buffer: Tensor | None = None

    def write(self, new: Tensor, cells: CacheColumns) -> None:
        """Set cells to `new`, [m, heads, n, d]."""
        buffer = self._grown(new, cells.end)
        if cells.all_rows and len(set(cells.starts)) == 1:
            buffer[:, :, cells.starts[0] : cells.end] = new
        else:
            rows, columns = cells.index(buffer.device)
            buffer[rows, :, columns] = new.transpose(1, 2)

    def read(self, rows: Tensor | None, end: int) -> Tensor:
        """The first `end` columns of some rows (a copy), or of all (a view, valid until the next `write`)."""
        if self._buffer is None:
            raise ValueError("nothing has been written yet")
        columns = self._buffer[:, :, :end]
        return columns if rows is None else columns[rows.to(columns.device)]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row listed twice is duplicated."""
        self._rows = len(rows)
        if self._buffer is not None:
            self._buffer = self._buffer[rows.to(self._buffer.device)]

    def _grown(self, new: Tensor, end: int) -> Tensor:
        """The buffer, with at least `end` columns."""
        old = self._buffer
        if old is not None and old.shape[2] >= end:
            return old
        # Zeros: a masked column has weight zero, and zero times an infinite leftover would be NaN.
        buffer = new.new_zeros(self._rows, new.shape[1], end + max(_SPARE, end // 4), new.shape[3])
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        self._buffer = buffer
        return buffer


class RaggedCache(Cache):
    """Keys and values of all layers. Before each forward pass, set `cells` to where its columns go."""

    cells: CacheColumns

    def __init__(self, rows: int, layers: int) -> None:
        self._ragged = [_RaggedLayer(self, rows) for _ in range(layers)]
        super().__init__(layers=list(self._ragged))

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row listed twice is duplicated."""
        for layer in self._ragged:
            for grid in layer.grids:
                grid.select(rows)

    def branches(self, rows: Tensor, length: int) -> Cache:
        """The first `length` columns of some rows, as a cache for one pass over branches of them."""
        pasts = ([grid.read(None, length) for grid in layer.grids] for layer in self._ragged)
        return Cache(layers=[BranchLayer(keys, values, rows) for keys, values in pasts])


class _RaggedLayer(DynamicLayer):
    """The keys and values of one layer, a grid each."""

    def __init__(self, cache: RaggedCache, rows: int) -> None:
        super().__init__()
        self._cache = cache
        self.grids = Grid(rows), Grid(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        cells = self._cache.cells
        for grid, new in zip(self.grids, (key_states, value_states), strict=True):
            grid.write(new, cells)
        if not any(cells.starts):  # without a past, attend to the new columns alone
            return key_states, value_states
        keys, values = (grid.read(None if cells.all_rows else cells.rows, cells.end) for grid in self.grids)
        return keys, values


class BranchLayer(DynamicLayer):
    """One layer's past for a pass over branches: the pass appends its own keys and values, and none are kept.

    Args:
        keys, values: [rows, heads, columns, d].
        rows: [m], which of them the pass reads (copied when the layer is reached); None: all.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
        super().__init__()
        self._past, self._rows = (keys, values), rows

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        keys, values = self._past
        if self._rows is not None:
            keys, values = keys[self._rows.to(keys.device)], values[self._rows.to(values.device)]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class Residuals:
    """The residual stream at the latest columns of every row.

    Args:
        reach: columns needed, counted back from any that may still be read; 0: all.
        ahead: the most columns appended at once, apart from prompts.
    """

    def __init__(self, rows: int, reach: int, ahead: int) -> None:
        self._rows = rows
        # A ring: a column is overwritten only once no window reaches it, even after the longest rewind.
        self._ring = reach - 1 + ahead if reach else 0
        self._buffer: Tensor | None = None  # [rows, ring or columns, d]

    def write(self, new: Tensor, cells: CacheColumns, counts: Sequence[int]) -> None:
        """Store `new`, [m, n, d], of which only the first counts[i] of row i are real."""
        buffer = self._grown(new, cells.end)
        rows, columns = cells.index(new.device)
        if self._ring:
            # The end of a long prompt only: otherwise two columns would be written to the same cell.
            ends = torch.tensor(counts, device=new.device)[:, None]
            offsets = torch.arange(new.shape[1], device=new.device)
            items, steps = ((offsets < ends) & (offsets >= ends - self._ring)).nonzero(as_tuple=True)
            buffer[rows[items, 0], columns[items, steps] % self._ring] = new[items, steps]
        else:
            buffer[rows, columns] = new

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The residuals of rows [m] at columns [m, n]: [m, n, d]."""
        if self._buffer is None:
            raise ValueError("nothing has been written yet")
        columns = columns % self._ring if self._ring else columns
        return self._buffer[rows.to(self._buffer.device)[:, None], columns.to(self._buffer.device)]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row listed twice is duplicated."""
        self._rows = len(rows)
        if self._buffer is not None:
            self._buffer = self._buffer[rows.to(self._buffer.device)]

    def _grown(self, new: Tensor, end: int) -> Tensor:
        """The buffer, with room for `end` columns."""
        old, needed = self._buffer, self._ring or end
        if old is not None and old.shape[1] >= needed:
            return old
        buffer = new.new_zeros(self._rows, self._ring or needed + max(_SPARE, needed // 4), new.shape[2])
        if old is not None:
            buffer[:, : old.shape[1]] = old
        self._buffer = buffer
        return buffer
