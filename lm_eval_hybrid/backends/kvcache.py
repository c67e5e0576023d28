"""Caches of keys and values: one that grows in place, and one that shows its first columns to candidates."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Columns:
    """A tensor that grows along dimension -2 into spare room, so that a new column does not copy the old ones.

    Args:
        last: how many of the latest columns are needed; older ones are forgotten in time. 0: all.
    """

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self._length = 0
        self._buffer: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """A view, [..., length, d], of the needed columns at least; valid until the next `append`."""
        if self._buffer is None:
            raise ValueError("nothing was appended yet")
        return self._buffer[..., : self._length, :]

    def append(self, new: Tensor) -> Tensor:
        """Add columns, [..., n, d]; returns the new `value`."""
        new = new[..., -self._last :, :]  # -0 is the start: all
        if self._buffer is None:
            self._make_room(new[..., :0, :], new.shape[-2])
        elif self._buffer.shape[-2] < self._length + new.shape[-2]:
            self._make_room(self.value[..., -self._last :, :], new.shape[-2])
        end = self._length + new.shape[-2]
        self._buffer[..., self._length : end, :] = new
        self._length = end
        return self.value

    def _make_room(self, kept: Tensor, coming: int) -> None:
        self._length = kept.shape[-2]
        size = self._length + coming
        self._buffer = kept.new_empty(*kept.shape[:-2], size + max(64, size // 4), kept.shape[-1])
        self._buffer[..., : self._length, :] = kept

    def keep(self, rows: Tensor) -> Tensor:
        """Go on with these rows (of dimension 0) only; returns the new `value`."""
        # Without the spare room: it need not be copied, and comes back with the next column.
        self._buffer = self.value[rows]
        return self._buffer


class GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, length, d] of one layer, grown in place."""

    def __init__(self) -> None:
        super().__init__()
        self._keys, self._values = Columns(), Columns()

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._keys.append(key_states), self._values.append(value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        indices = indices.to(self.device)
        self.keys, self.values = self._keys.keep(indices), self._values.keep(indices)


def growing_cache() -> Cache:
    """An empty cache. Every layer keeps all columns, those with sliding windows too: masks do the sliding."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def shared_prefix(cache: Cache, rows: Tensor, copies: int, length: int) -> Cache:
    """The first `length` columns of some rows, for `copies` candidates each, as a cache that keeps nothing."""
    return Cache(layers=[PrefixLayer(layer, rows, copies, length) for layer in cache.layers])


class PrefixLayer(DynamicLayer):
    """A view of a layer's first columns. New keys and values are joined to it for one pass, then forgotten."""

    def __init__(self, kept: DynamicLayer, rows: Tensor, copies: int, length: int) -> None:
        super().__init__()
        self.keys, self.values = kept.keys[:, :, :length], kept.values[:, :, :length]
        self.is_initialized = True
        self._rows, self._copies = rows.to(kept.device), copies

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, past: Tensor, new: Tensor) -> Tensor:
        """past [kept rows, heads, length, d], new [n * copies, heads, w, d] -> [n * copies, heads, length + w, d]."""
        # Expanded, the candidates' prefixes are views of one; joining the new columns is the only copy.
        past = past[self._rows, None].expand(-1, self._copies, -1, -1, -1)
        return torch.cat([past, new.unflatten(0, past.shape[:2])], dim=-2).flatten(0, 1)
