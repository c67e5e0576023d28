"""Stretches of the traces that are steered as one, over an unsteered past: a single place, or a whole sentence.

All segments of a trace are read in one pass, each as a branch of its own (`backends/masks.Branches`): it sees the
trace before it, unsteered, and itself, steered. So whatever the number of segments, a trace's past is there once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.discovery.vectors.pasts import Past, Pasts
from lm_eval_hybrid.portable.attention_masks import Branches

IGNORED = -100
LOGITS = 2**28
"""Bytes of float32 logits in a pass, unless one segment alone has more; its gradient takes as many again."""

TOKENS = 8192
"""Steered tokens in a pass, padding included, unless one segment alone has more."""

SCORES = 2**24
"""Pairs of a steered token and what it may see in a pass, unless one segment alone has more; a mask takes some 20 bytes
for each while it is made."""

COLUMNS = 2**14
"""Columns of pasts in a pass, padding included, unless one row alone has more."""


@dataclass(frozen=True)
class Segment:
    """Columns [begin, end) of a row that are steered, and the token that is to follow each.

    Attributes:
        row: which row of `Pasts`.
        targets: one base token a column.
        category: the latent whose vector steers it.
        number: its own, in whatever it is one of.
    """

    row: int
    begin: int
    targets: tuple[int, ...]
    category: int
    number: int

    @property
    def end(self) -> int:
        return self.begin + len(self.targets)


@dataclass(frozen=True)
class Layout:
    """Segments of some rows as one pass reads them: m rows, T tokens each at most; on the CPU.

    Attributes:
        rows: [m], which of `Pasts`; width: columns of these that are needed.
        columns, branch, forks: [m, T] int64; see `backends.masks.Branches`. Padding is in column -1.
        target: [m, T] int64, IGNORED in padding.
        category: [m, T] int64.
        number: [m, T] int64, of each token's segment; -1 in padding.
    """

    rows: list[int]
    width: int
    columns: Tensor
    branch: Tensor
    forks: Tensor
    target: Tensor
    category: Tensor
    number: Tensor

    @property
    def real(self) -> Tensor:
        """[m, T] bool: what is not padding."""
        return self.columns >= 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[Segment]]) -> "Layout":
        """Of each row some segments."""
        sizes = [_Size.of(part) for part in rows]
        size = (len(rows), max(size.tokens for size in sizes))
        columns, branch, target, number = (torch.full(size, fill) for fill in (-1, -1, IGNORED, -1))
        # Padding sees its row's first column: a query that sees nothing can overflow, in float16.
        forks, category = torch.ones(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        for i, part in enumerate(rows):
            at = 0
            for order, segment in enumerate(part):
                there = slice(at, at + len(segment.targets))
                columns[i, there] = torch.arange(segment.begin, segment.end)
                branch[i, there], forks[i, there], category[i, there] = order, segment.begin, segment.category
                target[i, there], number[i, there] = torch.tensor(segment.targets), segment.number
                at = there.stop
        width = max(size.columns for size in sizes)
        return cls([part[0].row for part in rows], width, columns, branch, forks, target, category, number)


def layouts(segments: Sequence[Segment], vocabulary: int) -> Iterator[Layout]:
    """Segments, in passes of bounded size, in an order that depends on them alone."""
    room = max(1, min(TOKENS, LOGITS // (4 * vocabulary)))
    by_row: dict[int, list[Segment]] = {}
    for segment in segments:
        by_row.setdefault(segment.row, []).append(segment)
    some: list[Sequence[Segment]] = []
    size = _Size(0, 0)
    for part in (part for whole in by_row.values() for part in _parts(whole, room)):
        larger = size.beside(_Size.of(part))
        if some and not larger.fits(len(some) + 1, room):
            yield Layout.of(some)
            some, larger = [], _Size.of(part)
        some.append(part)
        size = larger
    if some:
        yield Layout.of(some)


@dataclass(frozen=True)
class Pack:
    """A layout and the pasts of its rows, where the model is.

    Attributes:
        past: of the rows.
        branches: columns and segments.
        category: see `Layout`.
    """

    layout: Layout
    past: Past
    branches: Branches
    category: Tensor

    @property
    def real(self) -> Tensor:
        """[m, T] bool: what is not padding."""
        return self.branches.columns >= 0

    def residual(self) -> Tensor:
        """[m, T, d]: unsteered, after the steering layer, at each token."""
        columns = self.branches.columns.clamp(min=0)
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return self.past.residual[rows, columns]


def pack(pasts: Pasts, segments: Sequence[Segment]) -> Iterator[Pack]:
    """Segments, as of `layouts`, with their pasts."""
    device = pasts.base.device
    for layout in layouts(segments, pasts.base.config.get_text_config().vocab_size):
        past = pasts.read(layout.rows, layout.width)
        parts = (layout.columns, layout.branch, layout.forks, layout.category)
        columns, branch, forks, category = (part.to(device) for part in parts)
        # What the pass keeps is what is real; branches have no one end here.
        branches = Branches(columns, branch, columns.new_zeros(0), forks, past.residual.shape[1])
        yield Pack(layout, past, branches, category)


@dataclass(frozen=True)
class _Size:
    """Of a pass: how many tokens a row steers, and of how many columns it needs the past."""

    tokens: int
    columns: int

    @classmethod
    def of(cls, part: Sequence[Segment]) -> "_Size":
        return cls(sum(len(segment.targets) for segment in part), max(segment.end for segment in part))

    def beside(self, other: "_Size") -> "_Size":
        """Of both, as rows of one pass."""
        return _Size(max(self.tokens, other.tokens), max(self.columns, other.columns))

    def fits(self, rows: int, room: int) -> bool:
        tokens = rows * self.tokens
        small = tokens <= room and tokens * (self.tokens + self.columns) <= SCORES
        return small and (rows == 1 or rows * self.columns <= COLUMNS)


def _parts(segments: Sequence[Segment], room: int) -> Iterator[list[Segment]]:
    """Of one row, as many segments together as there is room for; at least one."""
    some: list[Segment] = []
    size = _Size(0, 0)
    for segment in segments:
        alone = _Size.of([segment])
        larger = _Size(size.tokens + alone.tokens, max(size.columns, alone.columns))
        if some and not larger.fits(1, room):
            yield some
            some, larger = [], alone
        some.append(segment)
        size = larger
    yield some


def steered_logits(pasts: Pasts, packed: Pack, steering: Tensor) -> Tensor:
    """Logits [m, T, vocab] float32 of what follows each token, with `steering` [m, T, d] added to its residual.

    Gradients reach `steering` through the layers above; the base's weights must not ask for any.
    """
    base, columns = pasts.base, packed.branches.columns
    residual = packed.residual()
    steered = residual + steering.to(residual.dtype)
    ids = columns.clamp(min=0, max=base.context_length - 1)
    arguments = {
        "input_ids": torch.zeros_like(ids),  # of the right shape; what they embed to is skipped
        "attention_mask": base.masks.branching(packed.branches),
        "position_ids": ids,
        base.cache_argument: packed.past.cache(pasts.layer + 1),
    }
    model, skipped = base.model, base.layers[: pasts.layer + 1]
    with model.trace(**arguments, use_cache=True):
        for layer in skipped:
            layer.skip(steered)
        logits = model.output.logits.save()
    return logits.to(base.device).float()
