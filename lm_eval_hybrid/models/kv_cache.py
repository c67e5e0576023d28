"""What is kept of the past, for rows that each grow at their own pace.

A row's column is its position, from 0, without padding: going back is forgetting a length, and a row that ends makes
room for another without a copy. Columns beyond a row's length hold what nobody may attend to; masks see to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SPARE = 64  # columns added at least where room is made, so that a new column seldom copies the old ones


@dataclass(frozen=True)
class Place:
    """Where new columns go: n for each of m rows.

    Attributes:
        rows: [m] int64.
        whole: whether these are all rows there are, in order.
        starts: first new column of each.
        columns: [m, n] int64, all of them.
    """

    rows: Tensor
    whole: bool
    starts: tuple[int, ...]
    columns: Tensor

    @classmethod
    def after(cls, lengths: Sequence[int], n: int, device: torch.device, rows: Sequence[int] | None = None) -> "Place":
        """The next n columns of some rows, or of all, of these lengths."""
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(n, device=device)
        listed = torch.arange(len(lengths), device=device) if rows is None else torch.tensor(rows, device=device)
        return cls(listed, rows is None, tuple(lengths), columns)

    @property
    def end(self) -> int:
        """Columns that some row has then."""
        return max(self.starts) + self.columns.shape[1]

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """([m, 1], [m, n]) int64: rows and columns, to index with."""
        return self.rows.to(device)[:, None], self.columns.to(device)


class Grid:
    """A tensor [rows, heads, columns, d] that grows along its columns."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._buffer: Tensor | None = None

    def write(self, new: Tensor, place: Place) -> None:
        """Set columns to `new`, [m, heads, n, d]."""
        buffer = self._with_room(new, place.end)
        if place.whole and len(set(place.starts)) == 1:
            buffer[:, :, place.starts[0] : place.end] = new
        else:
            rows, columns = place.index(buffer.device)
            buffer[rows, :, columns] = new.transpose(1, 2)

    def read(self, rows: Tensor | None, end: int) -> Tensor:
        """The first `end` columns of some rows (a copy), or of all (a view, valid until the next `write`)."""
        if self._buffer is None:
            raise ValueError("nothing was written yet")
        columns = self._buffer[:, :, :end]
        return columns if rows is None else columns[rows.to(columns.device)]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; a row may be listed more than once."""
        self._rows = len(rows)
        if self._buffer is not None:
            self._buffer = self._buffer[rows.to(self._buffer.device)]

    def _with_room(self, new: Tensor, end: int) -> Tensor:
        old = self._buffer
        if old is None or old.shape[2] < end:
            # Zeros: what is masked has weight zero, and zero times garbage that is infinite would not be zero.
            size = end + max(_SPARE, end // 4)
            self._buffer = new.new_zeros(self._rows, new.shape[1], size, new.shape[3])
            if old is not None:
                self._buffer[:, :, : old.shape[2]] = old
        return self._buffer


class RaggedCache(Cache):
    """Keys and values of all layers. `place` says, before each forward pass, where its columns go."""

    place: Place

    def __init__(self, rows: int, layers: int) -> None:
        super().__init__(layers=[_RaggedLayer(self, rows) for _ in range(layers)])

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; a row may be listed more than once."""
        for layer in self.layers:
            for grid in layer.grids:
                grid.select(rows)

    def branches(self, rows: Tensor, length: int) -> Cache:
        """The first `length` columns of some rows, as a cache to which a pass adds its own columns and keeps none."""
        return Cache(layers=[_BranchLayer(layer, rows, length) for layer in self.layers])


class _RaggedLayer(DynamicLayer):
    """One layer's keys and values, a grid each."""

    def __init__(self, cache: RaggedCache, rows: int) -> None:
        super().__init__()
        self._cache = cache
        self.grids = Grid(rows), Grid(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        place = self._cache.place
        for grid, new in zip(self.grids, (key_states, value_states), strict=True):
            grid.write(new, place)
        if not any(place.starts):  # there is no past: what is new is all
            return key_states, value_states
        keys, values = (grid.read(None if place.whole else place.rows, place.end) for grid in self.grids)
        return keys, values


class _BranchLayer(DynamicLayer):
    """The past of one layer, to which new keys and values are joined for one pass."""

    def __init__(self, past: _RaggedLayer, rows: Tensor, length: int) -> None:
        super().__init__()
        self._past, self._rows, self._length = past, rows, length

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        past = [grid.read(self._rows, self._length) for grid in self._past.grids]
        return torch.cat([past[0], key_states], dim=-2), torch.cat([past[1], value_states], dim=-2)


class Residuals:
    """The residual stream at the latest columns of every row.

    Args:
        reach: how many columns, counted back from any that may still be asked for, are needed; 0: all.
        ahead: columns that are added at once at most, prompts excepted.
    """

    def __init__(self, rows: int, reach: int, ahead: int) -> None:
        self._rows = rows
        # A ring: a column is overwritten only when no window reaches it, however many of the latest are taken back.
        self._ring = reach - 1 + ahead if reach else 0
        self._buffer: Tensor | None = None  # [rows, ring or columns, d]

    def write(self, new: Tensor, place: Place, counts: Sequence[int]) -> None:
        """Keep `new`, [m, n, d], of which the i-th row's first counts[i] are real."""
        wanted = self._ring or place.end
        old = self._buffer
        if old is None or old.shape[1] < wanted:
            self._buffer = new.new_zeros(self._rows, self._ring or wanted + max(_SPARE, wanted // 4), new.shape[2])
            if old is not None:
                self._buffer[:, : old.shape[1]] = old
        rows, columns = place.index(new.device)
        if self._ring:
            # Of a long prompt only what fits: two columns must not claim one place.
            ends = torch.tensor(counts, device=new.device)[:, None]
            offsets = torch.arange(new.shape[1], device=new.device)
            items, steps = ((offsets < ends) & (offsets >= ends - self._ring)).nonzero(as_tuple=True)
            self._buffer[rows[items, 0], columns[items, steps] % self._ring] = new[items, steps]
        else:
            self._buffer[rows, columns] = new

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Those of rows [m] at columns [m, n]: [m, n, d]."""
        if self._buffer is None:
            raise ValueError("nothing was written yet")
        columns = columns % self._ring if self._ring else columns
        return self._buffer[rows.to(self._buffer.device)[:, None], columns.to(self._buffer.device)]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; a row may be listed more than once."""
        self._rows = len(rows)
        if self._buffer is not None:
            self._buffer = self._buffer[rows.to(self._buffer.device)]
