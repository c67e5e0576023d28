"""The passes that a program makes at a server (`programs.py`): rows are read, candidates are steered.

Plain functions, as there. `past` is what a request holds of its rows while it lives: their cache and pads, the width,
and of the last columns logits and residual.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor
from transformers import DynamicCache

from lm_eval_hybrid.portable.attention_masks import for_kinds, window_and_kinds

_PASS = 8192  # tokens of a forward pass at most


def opened(model: Any, path: str) -> tuple[Any, Any, torch.device]:
    """(the model without the tokenizing around it, its layers, its device)."""
    # Its module wrapped anew: the wrapper that the server has takes inputs apart into rows, and knows no masks by kind.
    inner = NNsight(model._module)
    return inner, list(attrgetter(path)(inner)), next(model._module.parameters()).device


def read_rows(
    inner: Any, layers: list[Any], given: dict[str, Any], ids: list[list[int]], reach: int, keep: int
) -> dict[str, Any]:
    """Read rows into a cache. reach: columns of which the residual is kept (0: all); keep: of which the logits are."""
    device = next(inner._module.parameters()).device
    width = max(len(row) for row in ids)
    pads = torch.tensor([width - len(row) for row in ids], device=device)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids], device=device)
    past = {"cache": DynamicCache(), "pads": pads, "width": width, "logits": None, "residual": None}
    piece = max(1, _PASS // len(ids))
    logits, residuals = [], []
    layer = layers[given["layer"]]
    for start in range(0, width, piece):
        part = tokens[:, start : start + piece]
        end = start + part.shape[1]
        columns = torch.arange(start, end, device=device).expand(len(ids), -1)
        arguments = pass_arguments(inner, past, part, columns, max(1, min(part.shape[1], keep - (width - end))))
        with inner.trace(**arguments):
            residual = layer.output.save()
            said = inner.output.logits.save()
        if not reach or width - end < reach:
            residuals.append(residual)
        if width - end < keep:
            logits.append(said)
    if width:
        past["residual"] = torch.cat(residuals, 1)[:, -reach:] if reach else torch.cat(residuals, 1)
        past["logits"] = torch.cat(logits, 1)[:, -keep:]
    return past


def pass_arguments(inner: Any, past: dict[str, Any], tokens: Tensor, columns: Tensor, keep: int) -> dict[str, Any]:
    pads = past["pads"]
    return {
        "input_ids": tokens,
        "attention_mask": causal_mask(inner, columns, pads, int(columns.max()) + 1),
        "position_ids": (columns - pads[:, None]).clamp(min=0),
        _cache_argument(inner): past["cache"],
        "use_cache": True,
        "logits_to_keep": keep,
    }


def _cache_argument(inner: Any) -> str:
    # Newer releases of transformers (5.24) call the past `cache`.
    return "cache" if "cache" in inspect.signature(inner._module.forward).parameters else "past_key_values"


def causal_mask(inner: Any, columns: Tensor, pads: Tensor, end: int) -> Any:
    """For queries at `columns`, [rows, n], over all columns before `end`."""
    keys = torch.arange(end, device=columns.device)
    distance = columns[:, :, None] - keys
    window, kinds = window_and_kinds(inner._module.config)
    return for_kinds((distance >= 0) & (keys >= pads[:, None, None]), distance, inner._module.dtype, window, kinds)


def reach_of(windows: list[int]) -> int:
    return 0 if 0 in windows else max(windows)


def steered_logits(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], steering: dict[str, Any]
) -> Tensor:
    """Next-token logits [m, C, vocab] of every candidate after the last column of its row."""
    width, windows = past["width"], steering["windows"]
    near = [c for c, window in enumerate(windows) if 0 < window < width]
    far = [c for c in range(len(windows)) if c not in near]
    parts: dict[int, Tensor] = {}
    size = max(1, _PASS // max(1, sum(windows[c] for c in near)))
    places = range(len(steering["rows"]))
    if near:
        logits = torch.cat(
            [_branches(inner, layers, given, past, steering, list(places[i : i + size]), near) for i in places[::size]]
        )
        parts.update({c: logits[:, i] for i, c in enumerate(near)})
    for c in far:
        size = max(1, _PASS // width)
        pieces = [_whole(inner, layers, given, past, steering, list(places[i : i + size]), c) for i in places[::size]]
        parts[c] = torch.cat(pieces)
    return torch.stack([parts[c] for c in range(len(windows))], 1)


def _branches(
    inner: Any,
    layers: list[Any],
    given: dict[str, Any],
    past: dict[str, Any],
    steering: dict[str, Any],
    places: list[int],
    near: list[int],
) -> Tensor:
    """Candidates whose windows leave some of a row unsteered: branches of it, side by side in one pass."""
    device, width = past["pads"].device, past["width"]
    sizes = torch.tensor([steering["windows"][c] for c in near], device=device)
    branch = torch.arange(len(near), device=device).repeat_interleave(sizes)
    ends = sizes.cumsum(0) - 1
    columns = width - 1 + torch.arange(len(branch), device=device) - ends[branch]
    shared = width - int(sizes.min())
    rows = torch.tensor([steering["rows"][i] for i in places], device=device)
    pads = past["pads"][rows]
    keys = torch.arange(shared, device=device)
    forks = width - sizes[branch]
    sees_past = (keys < forks[:, None]) & (keys >= pads[:, None, None])
    own = columns[:, None] - columns
    sees_own = (branch[:, None] == branch) & (own >= 0) & (columns >= pads[:, None, None])
    distance = torch.cat([columns[:, None] - keys, own], 1)
    window, kinds = window_and_kinds(inner._module.config)
    mask = for_kinds(torch.cat([sees_past, sees_own], 2), distance, inner._module.dtype, window, kinds)
    kept = past["residual"][rows][:, columns - width]
    residual = kept + _steering(steering, places, near, device)[:, branch].to(kept)
    positions = (columns - pads[:, None]).clamp(min=0)
    return above(inner, layers, given, residual, mask, positions, ends, copied(past["cache"], rows, shared))


def _whole(
    inner: Any,
    layers: list[Any],
    given: dict[str, Any],
    past: dict[str, Any],
    steering: dict[str, Any],
    places: list[int],
    c: int,
) -> Tensor:
    """A candidate that is steered at all positions, or at as many as its row has: [m, vocab]."""
    device, width = past["pads"].device, past["width"]
    rows = torch.tensor([steering["rows"][i] for i in places], device=device)
    pads = past["pads"][rows]
    columns = torch.arange(width, device=device).expand(len(places), -1)
    kept = past["residual"][rows]
    residual = kept + _steering(steering, places, [c], device).to(kept)
    positions = (columns - pads[:, None]).clamp(min=0)
    return above(inner, layers, given, residual, causal_mask(inner, columns, pads, width), positions, 1, None)[:, -1]


def above(
    inner: Any,
    layers: list[Any],
    given: dict[str, Any],
    residual: Tensor,
    mask: Any,
    positions: Tensor,
    keep: Any,
    cache: Any,
) -> Tensor:
    """Logits of a pass through the layers above the hook layer, which gave `residual` [m, n, d].

    keep: at which of the n tokens, or of how many of the last (0: all); cache: the past, to which is added; or None.
    """
    arguments = {
        "input_ids": torch.zeros_like(residual[..., 0], dtype=torch.int64),  # what they embed to is skipped
        "attention_mask": mask,
        "position_ids": positions,
        "use_cache": cache is not None,
        "logits_to_keep": keep,
    }
    if cache is not None:
        arguments[_cache_argument(inner)] = cache
    skipped = layers[: given["layer"] + 1]
    with inner.trace(**arguments):
        for layer in skipped:
            layer.skip(residual)
        logits = inner.output.logits.save()
    return logits


def _steering(steering: dict[str, Any], places: list[int], candidates: list[int], device: torch.device) -> Tensor:
    """[m, C, d] float32, what is added for each candidate."""
    coefficients = steering["coefficients"][places][:, candidates].to(device)
    return coefficients[:, :, None] * steering["direction"][places].to(device)[:, None]


def copied(cache: Any, rows: Tensor, length: int) -> Any:
    """The first columns of some rows, as a cache of its own."""
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys[rows, :, :length], layer.values[rows, :, :length], index)
    return copy


def sendable(found: dict[str, Any]) -> dict[str, Any]:
    """On the CPU, and no views: of a view all that it is a part of would be sent."""
    return {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in found.items()}
