"""Attention masks that a model takes as they are: for rows of different lengths, and for branches of a row.

Additive, of the model's dtype: zero where a token may look, the smallest number where it may not. Both of
transformers' attentions that take masks (eager and sdpa) add them to the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_hybrid.common.errors import HybridError

Mask = Tensor | dict[str, Tensor]
"""[rows, 1, queries, keys]; by kind of layer, where a model has kinds."""

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Branches:
    """C branches from one place in each of m rows. T tokens: the last windows[c] up to that place, for each c.

    Attributes:
        columns: [m, T] int64, their positions; below 0 where a window is longer than the row.
        branch: [T] int64, which branch a token belongs to; or [m, T], where rows have branches of their own.
        ends: [C] int64, index of each branch's last token.
        forks: [m, T] int64, position at which a token's branch leaves the row.
        shared: columns of the rows' past that any branch sees.
    """

    columns: Tensor
    branch: Tensor
    ends: Tensor
    forks: Tensor
    shared: int

    @classmethod
    def of(cls, positions: Sequence[int], windows: Sequence[int], device: torch.device) -> "Branches":
        """Branches that end at `positions`, one a row; each window is 1 or more."""
        sizes = torch.tensor(windows, device=device)
        branch = torch.arange(len(windows), device=device).repeat_interleave(sizes)
        ends = sizes.cumsum(0) - 1
        offsets = torch.arange(len(branch), device=device) - ends[branch]
        last = torch.tensor(positions, device=device)[:, None]
        shared = max(0, max(positions) + 1 - min(windows))
        return cls(last + offsets, branch, ends, last + 1 - sizes[branch], shared)


@dataclass(frozen=True)
class Masks:
    """The masks of one model.

    Attributes:
        dtype: the model's.
        window: of its layers that slide: positions that a token sees, itself included; None where none slides.
        kinds: the names of its kinds of layers; empty where all are alike.
    """

    dtype: torch.dtype
    window: int | None = None
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Masks":
        """Read from a model's configuration.

        Raises:
            HybridError: where its attention takes no such masks, or its past is not one of keys and values.
        """
        attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
        if attention not in ("eager", "sdpa"):
            raise HybridError(
                "a hybrid needs an attention that takes masks: eager or sdpa; found "
                f"{attention}; pass attn_implementation=sdpa"
            )
        window, kinds = window_and_kinds(model.config)
        if getattr(model, "_is_stateful", False) or set(kinds) - {_FULL, _SLIDING}:
            found = ", ".join(kinds) or "a recurrent state"
            raise HybridError(
                "a hybrid takes tokens back, which needs a model whose past is keys and values of full or sliding "
                f"attention; found {found} in {type(model).__name__}; use a transformer of plain attention layers"
            )
        return cls(model.dtype, window, kinds)

    def causal(self, columns: Tensor, end: int) -> Mask:
        """For queries at `columns`, [m, n], over a past in which a column's index, up to `end`, is its position."""
        distance = columns[:, :, None] - torch.arange(end, device=columns.device)
        return self._masks(distance >= 0, distance)

    def branching(self, branches: Branches) -> Mask:
        """For all branches at once, over the columns that they share and then their own tokens."""
        columns, branch = branches.columns, branches.branch
        past = torch.arange(branches.shared, device=columns.device)
        past_distance = columns[:, :, None] - past
        own_distance = columns[:, :, None] - columns[:, None, :]
        sees_past = past < branches.forks[:, :, None]
        sees_own = (branch[..., :, None] == branch[..., None, :]) & (own_distance >= 0) & (columns >= 0)[:, None, :]
        return self._masks(torch.cat([sees_past, sees_own], 2), torch.cat([past_distance, own_distance], 2))

    def _masks(self, seen: Tensor, distance: Tensor) -> Mask:
        return for_kinds(seen, distance, self.dtype, self.window, self.kinds)


# Plain functions: they are also sent to a remote model's server, by their source (`portable/programs.py`).
def window_and_kinds(config: Any) -> tuple[int | None, tuple[str, ...]]:
    """Of a model's configuration `Masks.window` and `Masks.kinds`."""
    config = config.get_text_config()
    kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    window = getattr(config, "sliding_window", None)
    return (window if not kinds or _SLIDING in kinds else None), kinds


def for_kinds(
    seen: Tensor, distance: Tensor, dtype: torch.dtype, window: int | None, kinds: tuple[str, ...]
) -> Tensor | dict[str, Tensor]:
    """Masks for what queries may see, seen and distance each [m, queries, keys]; see `Masks` for the others."""
    if window is None:
        return additive(seen, dtype)
    sliding = additive(seen & (distance < window), dtype)
    if len(kinds) < 2:
        return sliding
    return {_FULL: additive(seen, dtype), _SLIDING: sliding}


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[m, queries, keys] bool -> [m, 1, queries, keys]."""
    blocked = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, blocked.new_zeros(()), blocked)[:, None]
