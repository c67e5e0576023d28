"""Segments of the traces to steer, and the batches of segments that one forward pass reads.

All segments of a trace are read in one pass, each as a branch of its own (`portable.attention_masks.branch_mask`): a
segment attends to the unsteered trace before it and to its own steered tokens. So a trace's prefix is held once,
however many of its segments are steered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
