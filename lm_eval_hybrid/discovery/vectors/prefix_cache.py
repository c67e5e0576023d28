"""Unsteered activations of the traces that steering needs, computed once and kept while they fit in memory.

Steering is added to the output of one layer, so the layers below it and the tokens before a steered position never
change. Of the lower layers only the last residual is needed, and of the upper layers the prefix's keys and values.
Gradients flow through the upper layers at the steered positions alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_hybrid.models.kv_cache import BranchLayer
from lm_eval_hybrid.models.local import LocalBackend

CACHE_BYTES = 2**32
"""Bytes of prefixes to keep; rows beyond that are recomputed each time they are read."""


@dataclass(frozen=True)
class Prefix:
    """Unsteered activations of m rows, n columns each.

    Attributes:
        residual: [m, n, d], after the steering layer.
        keys, values: of each layer above it, [m, heads, n, d_head]; zeros beyond a row's end.
    """

    residual: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.residual, *self.keys, *self.values))

    def kv_cache(self, skipped: int) -> Cache:
        """A cache to run the layers above the first `skipped` ones over branches of the rows."""
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[*(DynamicLayer() for _ in range(skipped)), *(BranchLayer(k, v) for k, v in pairs)])


class PrefixCache:
    """Prefixes of rows of tokens.

    Each row is computed alone, so its bits depend neither on the other rows nor on whether it was kept. The cache holds
    up to `CACHE_BYTES`, and the rows that were read last.

    Args:
        rows: of the base's tokens.
        layer: the layer whose output is steered.
    """

    def __init__(self, base: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        self.base, self.rows, self.layer = base, rows, layer
        self._kept: dict[int, Prefix] = {}
        self._last: dict[int, Prefix] = {}
        self._free = CACHE_BYTES

    def read(self, rows: Sequence[int], columns: int) -> Prefix:
        """The first `columns` columns of some rows, by index; zeros beyond a row's end."""
        known = {**self._last, **self._kept}
        self._last = {row: known[row] for row in rows if row in known}
        del known  # frees the rows of the last call before new ones are computed
        for row in rows:
            if row not in self._last:
                self._last[row] = self._compute(row)
        return _joined([self._last[row] for row in rows], columns)

    @torch.no_grad()
    def _compute(self, row: int) -> Prefix:
        base, cache = self.base, DynamicCache()
        ids = torch.tensor([self.rows[row]], device=base.device)
        arguments = {"input_ids": ids, base.cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        residual, _ = base.read_pass(base.model, base.layers[self.layer], arguments)
        keys, values = [], []
        for cached in cache.layers[self.layer + 1 :]:
            assert isinstance(cached, DynamicLayer) and cached.keys is not None and cached.values is not None
            keys.append(cached.keys)
            values.append(cached.values)
        prefix = Prefix(residual.to(base.device), tuple(keys), tuple(values))
        if prefix.nbytes <= self._free:
            self._free -= prefix.nbytes
            self._kept[row] = prefix
        return prefix


def _joined(prefixes: Sequence[Prefix], columns: int) -> Prefix:
    """The first `columns` columns of prefixes of one row each."""

    def join(tensors: Sequence[Tensor], axis: int) -> Tensor:
        first = tensors[0]
        if len(tensors) == 1 and first.shape[axis] >= columns:
            return first.narrow(axis, 0, columns)
        joined = first.new_zeros(len(tensors), *first.shape[1:axis], columns, *first.shape[axis + 1 :])
        for row, tensor in enumerate(tensors):
            length = min(columns, tensor.shape[axis])
            joined[row].narrow(axis - 1, 0, length).copy_(tensor[0].narrow(axis - 1, 0, length))
        return joined

    return Prefix(
        join([prefix.residual for prefix in prefixes], 1),
        tuple(join(keys, 2) for keys in zip(*(prefix.keys for prefix in prefixes), strict=True)),
        tuple(join(values, 2) for values in zip(*(prefix.values for prefix in prefixes), strict=True)),
    )
