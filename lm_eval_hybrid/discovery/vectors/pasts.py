"""What the frozen base makes of the traces below and before a steered place: computed once, kept while there is room.

Steering enters after one layer. What is below it never changes, and what is before a steered place is unsteered
(DESIGN, section 2). So of the lower layers only their last residual is needed, and of the upper ones the past's keys
and values; gradients flow through the upper layers at the steered places alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_hybrid.models.local import LocalBackend

ROOM = 2**32
"""Bytes of pasts that are kept; the others are computed each time that they are read anew."""


@dataclass(frozen=True)
class Past:
    """What steering some rows needs, unsteered.

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

    def cache(self, below: int) -> Cache:
        """As a cache to which a pass joins its own columns, and keeps none; `below` layers are skipped."""
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[*(DynamicLayer() for _ in range(below)), *(_PastLayer(k, v) for k, v in pairs)])


class Pasts:
    """The pasts of rows of tokens.

    Each row is computed alone, so its bits depend neither on its neighbours nor on whether it was kept. What is held is
    `ROOM` bytes at most, and the rows that were read last.

    Args:
        rows: of the base's tokens.
        layer: after which steering is added.
    """

    def __init__(self, base: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        self.base, self.rows, self.layer = base, rows, layer
        self._kept: dict[int, Past] = {}
        self._last: dict[int, Past] = {}
        self._room = ROOM

    def read(self, some: Sequence[int], columns: int) -> Past:
        """The first `columns` columns of some rows, by index; zeros beyond a row's end."""
        held = {**self._last, **self._kept}
        self._last = {row: held[row] for row in some if row in held}
        del held  # what is asked for no more makes room first
        for row in some:
            if row not in self._last:
                self._last[row] = self._compute(row)
        return _joined([self._last[row] for row in some], columns)

    @torch.no_grad()
    def _compute(self, row: int) -> Past:
        base, cache = self.base, DynamicCache()
        ids = torch.tensor([self.rows[row]], device=base.device)
        arguments = {"input_ids": ids, base.cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        residual, _ = base.read_pass(base.model, base.layers[self.layer], arguments)
        above = cache.layers[self.layer + 1 :]
        past = Past(residual.to(base.device), tuple(kept.keys for kept in above), tuple(kept.values for kept in above))
        if past.nbytes <= self._room:
            self._room -= past.nbytes
            self._kept[row] = past
        return past


def _joined(pasts: Sequence[Past], columns: int) -> Past:
    def join(tensors: Sequence[Tensor], axis: int) -> Tensor:
        first = tensors[0]
        if len(tensors) == 1 and first.shape[axis] >= columns:
            return first.narrow(axis, 0, columns)
        joined = first.new_zeros(len(tensors), *first.shape[1:axis], columns, *first.shape[axis + 1 :])
        for row, tensor in enumerate(tensors):
            there = min(columns, tensor.shape[axis])
            joined[row].narrow(axis - 1, 0, there).copy_(tensor[0].narrow(axis - 1, 0, there))
        return joined

    return Past(
        join([past.residual for past in pasts], 1),
        tuple(join(keys, 2) for keys in zip(*(past.keys for past in pasts), strict=True)),
        tuple(join(values, 2) for values in zip(*(past.values for past in pasts), strict=True)),
    )


class _PastLayer(DynamicLayer):
    """The past of one layer, to which new keys and values are joined for one pass."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._past = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        past_keys, past_values = self._past
        return torch.cat([past_keys, key_states], dim=-2), torch.cat([past_values, value_states], dim=-2)
