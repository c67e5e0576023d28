"""What the frozen base makes of the traces below and before a steered place: computed once, kept while there is room.

Steering enters after one layer. What is below it never changes, and what is before a steered place is unsteered
(DESIGN, section 2). So of the lower layers only their last residual is needed, and of the upper ones the past's keys
and values; gradients flow through the upper layers at the steered places alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery.gates import padded

ROOM = 2**32
"""Bytes of pasts that are kept; the others are computed each time."""


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

    def row(self, row: int, length: int) -> "Past":
        """One row's, its padding cut off."""
        return Past(
            self.residual[row : row + 1, :length].clone(),
            tuple(keys[row : row + 1, :, :length].clone() for keys in self.keys),
            tuple(values[row : row + 1, :, :length].clone() for values in self.values),
        )

    def cache(self, below: int) -> Cache:
        """As a cache to which a pass joins its own columns, and keeps none; `below` layers are skipped."""
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[*(DynamicLayer() for _ in range(below)), *(_PastLayer(k, v) for k, v in pairs)])


class Pasts:
    """The pasts of rows of tokens.

    Args:
        rows: of the base's tokens.
        layer: after which steering is added.
    """

    def __init__(self, base: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        self.base, self.rows, self.layer = base, rows, layer
        self._kept: dict[int, Past] = {}
        self._room = ROOM

    def read(self, some: Sequence[int]) -> Past:
        """The pasts of some rows, by index, padded to the longest."""
        missing = [row for row in dict.fromkeys(some) if row not in self._kept]
        new: dict[int, Past] = {}
        if missing:
            read = self._compute([self.rows[row] for row in missing])
            new = {row: read.row(i, len(self.rows[row])) for i, row in enumerate(missing)}
            for row, past in new.items():
                if past.nbytes <= self._room:
                    self._room -= past.nbytes
                    self._kept[row] = past
        return _joined([new.get(row) or self._kept[row] for row in some])

    @torch.no_grad()
    def _compute(self, rows: Sequence[Sequence[int]]) -> Past:
        base, cache = self.base, DynamicCache()
        arguments = {**padded(base, rows), base.cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        residual, _ = base.read_pass(base.model, base.layers[self.layer], arguments)
        above = cache.layers[self.layer + 1 :]
        return Past(residual, tuple(kept.keys for kept in above), tuple(kept.values for kept in above))


def _joined(pasts: Sequence[Past]) -> Past:
    width = max(past.residual.shape[1] for past in pasts)

    def join(tensors: Sequence[Tensor], axis: int) -> Tensor:
        # `pad` counts axes from the last.
        return torch.cat([pad(t, (0, 0) * (t.ndim - 1 - axis) + (0, width - t.shape[axis])) for t in tensors])

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
