"""Rows of different lengths in one forward pass: padding, and the attention masks for rows and for branches of rows.

A mask is additive, of the model's dtype: zero where a token may attend, the lowest number where it may not. Both
attention implementations of transformers that take masks, eager and sdpa, add it to the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"

Mask = Tensor | dict[str, Tensor]
"""[rows, 1, queries, keys]; one for each kind of layer, where a model has several kinds."""

MaskForm = tuple[torch.dtype, int | None, tuple[str, ...]]
"""What masks of one model look like: dtype, sliding window or None, kinds of layers (empty where all are alike)."""


def pad_rows(rows: Sequence[Sequence[int]], device: Any = None, left: bool = False, fill: int = 0) -> Tensor:
    """[rows, longest] int64: rows of ints, padded on the right, or on the `left`."""
    width = max(map(len, rows))
    pads = [[fill] * (width - len(row)) for row in rows]
    padded = [[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
    return torch.tensor(padded, dtype=torch.int64, device=device)


def mask_form(model: Any) -> MaskForm:
    """The form of a transformers model's masks, from its configuration."""
    config = model.config.get_text_config()
    kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    window = getattr(config, "sliding_window", None)
    return model.dtype, (window if not kinds or SLIDING in kinds else None), kinds


def causal_mask(queries: Tensor, keys: Tensor, form: MaskForm) -> Mask:
    """Every query attends to the keys up to its own position.

    Args:
        queries, keys: [m, n] and [m or 1, k] int64, positions; below 0 in padding.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    return _mask((distance >= 0) & (keys >= 0)[:, None, :], distance, form)


def branch_layout(windows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C branches of a row side by side, T tokens: branch c is the last windows[c] (1 or more) tokens of the row.

    Returns:
        branch [T], which branch a token belongs to; offset [T], its position less that of the row's last token; fork
        [T], that of the first token of its branch; ends [C], the index of each branch's last token. All int64.
    """
    sizes = torch.tensor(windows, device=device)
    branch = torch.arange(len(windows), device=device).repeat_interleave(sizes)
    ends = sizes.cumsum(0) - 1
    return branch, torch.arange(len(branch), device=device) - ends[branch], 1 - sizes[branch], ends


def branch_mask(positions: Tensor, branch: Tensor, forks: Tensor, keys: Tensor, form: MaskForm) -> Mask:
    """Every token attends to the row before its branch, and to its own branch up to itself.

    Args:
        positions: [m, T] int64, of the branches' tokens; below 0 in padding.
        branch: [T] or [m, T], which branch a token belongs to.
        forks: [m, T], position at which a token's branch leaves the row.
        keys: [m or 1, k], positions of the cached columns; below 0 in padding.

    Returns:
        The mask over k cached columns, followed by the T tokens themselves.
    """
    past, own = (positions[:, :, None] - others[:, None, :] for others in (keys, positions))
    sees_past = (keys[:, None, :] < forks[:, :, None]) & (keys >= 0)[:, None, :]
    sees_own = (branch[..., :, None] == branch[..., None, :]) & (own >= 0) & (positions >= 0)[:, None, :]
    return _mask(torch.cat([sees_past, sees_own], 2), torch.cat([past, own], 2), form)


def _mask(seen: Tensor, distance: Tensor, form: MaskForm) -> Mask:
    dtype, window, kinds = form
    if window is None:
        return _additive(seen, dtype)
    sliding = _additive(seen & (distance < window), dtype)
    return sliding if len(kinds) < 2 else {FULL: _additive(seen, dtype), SLIDING: sliding}


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[m, queries, keys] bool -> [m, 1, queries, keys]."""
    blocked = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, blocked.new_zeros(()), blocked)[:, None]
