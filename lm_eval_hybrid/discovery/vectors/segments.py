"""Segments of the traces to steer, and the batches of segments that one forward pass reads.

All segments of a trace are read in one pass, each as a branch of its own (`portable.attention_masks.branch_mask`): a
segment attends to the unsteered trace before it and to its own steered tokens. So a trace's prefix is held once,
however many of its segments are steered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_hybrid.models.kv_cache import BranchLayer
from lm_eval_hybrid.models.local import LocalBackend

PADDING = -1
LOGIT_BYTES = 2**28
"""Bytes of float32 logits in a pass, which only a single segment may exceed; their gradient takes as many again."""

TOKENS = 8192
"""Steered tokens in a pass, padding included, which only a single segment may exceed."""

SCORES = 2**24
"""Attention scores in a pass and head, which only a single segment may exceed; building a mask takes about 20 bytes
for each."""

COLUMNS = 2**14
"""Prefix columns in a pass, padding included, which only a single row may exceed."""


@dataclass(frozen=True)
class Segment:
    """Columns [begin, end) of a row to steer: a single position, or a whole sentence.

    Attributes:
        row: index of the row, a trace in the base's tokens.
        targets: the base token to predict after each column.
        category: the latent whose vector steers it.
        index: its index among the disagreements or sentences that it comes from.
    """

    row: int
    begin: int
    targets: tuple[int, ...]
    category: int
    index: int

    @property
    def end(self) -> int:
        return self.begin + len(self.targets)


@dataclass(frozen=True)
class SegmentBatch:
    """Segments of m rows, padded to T tokens each, as one pass reads them; on the CPU.

    Attributes:
        rows: [m], indices of the rows.
        width: number of columns of these rows that the pass needs.
        columns, branch, forks: [m, T] int64; see `portable.attention_masks.branch_mask`.
        target, category, index: [m, T] int64, of each token; `index` is its segment's. In padding, `columns`, `branch`,
            `target` and `index` are PADDING.
    """

    rows: list[int]
    width: int
    columns: Tensor
    branch: Tensor
    forks: Tensor
    target: Tensor
    category: Tensor
    index: Tensor

    @property
    def real(self) -> Tensor:
        """[m, T] bool: True except in padding."""
        return self.columns >= 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[Segment]]) -> "SegmentBatch":
        """One batch of some segments of each row."""
        sizes = [_Size.of(segments) for segments in rows]
        shape = (len(rows), max(size.tokens for size in sizes))
        columns, branch, target, index = (torch.full(shape, PADDING) for _ in range(4))
        # Padding attends to its row's first column: a query that attends to nothing can overflow in float16.
        forks, category = torch.ones(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for i, segments in enumerate(rows):
            start = 0
            for number, segment in enumerate(segments):
                span = slice(start, start + len(segment.targets))
                columns[i, span] = torch.arange(segment.begin, segment.end)
                branch[i, span], forks[i, span], category[i, span] = number, segment.begin, segment.category
                target[i, span], index[i, span] = torch.tensor(segment.targets), segment.index
                start = span.stop
        width = max(size.columns for size in sizes)
        return cls([segments[0].row for segments in rows], width, columns, branch, forks, target, category, index)


def batches(segments: Sequence[Segment], vocabulary: int) -> Iterator[SegmentBatch]:
    """Batches of bounded size; their composition depends on the segments alone.

    Args:
        vocabulary: number of logits per token.
    """
    most = max(1, min(TOKENS, LOGIT_BYTES // (4 * vocabulary)))
    by_row: dict[int, list[Segment]] = {}
    for segment in segments:
        by_row.setdefault(segment.row, []).append(segment)
    batch: list[Sequence[Segment]] = []
    size = _Size(0, 0)
    for part in (part for row in by_row.values() for part in _parts(row, most)):
        larger = size.joined(_Size.of(part))
        if batch and not larger.fits(len(batch) + 1, most):
            yield SegmentBatch.of(batch)
            batch, larger = [], _Size.of(part)
        batch.append(part)
        size = larger
    if batch:
        yield SegmentBatch.of(batch)


@dataclass(frozen=True)
class _Size:
    """Size of a batch: steered tokens per row, and prefix columns per row."""

    tokens: int
    columns: int

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "_Size":
        return cls(sum(len(segment.targets) for segment in segments), max(segment.end for segment in segments))

    def joined(self, other: "_Size") -> "_Size":
        """The size per row of a batch with the rows of both."""
        return _Size(max(self.tokens, other.tokens), max(self.columns, other.columns))

    def fits(self, rows: int, most: int) -> bool:
        tokens = rows * self.tokens
        small = tokens <= most and tokens * (self.tokens + self.columns) <= SCORES
        return small and (rows == 1 or rows * self.columns <= COLUMNS)


def _parts(segments: Sequence[Segment], most: int) -> Iterator[list[Segment]]:
    """The segments of one row, split into parts that fit into a batch, each of one segment or more."""
    part: list[Segment] = []
    size = _Size(0, 0)
    for segment in segments:
        alone = _Size.of([segment])
        larger = _Size(size.tokens + alone.tokens, max(size.columns, alone.columns))
        if part and not larger.fits(1, most):
            yield part
            part, larger = [], alone
        part.append(segment)
        size = larger
    yield part


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
