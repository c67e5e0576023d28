"""The forward passes of a program on a server: rows are read into a KV cache, candidates are steered over it.

Rows are padded on the left, so that all end in the same column and take every further step together; a token's position
is its column less the row's padding. A dict `past` holds the rows while a request runs: `cache`, `pads` [rows], `width`
in columns, and `logits` and `residual` of the last columns.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor
from transformers import DynamicCache

from lm_eval_hybrid.portable.attention_masks import branch_layout, branch_mask, causal_mask, mask_form, pad_rows

PASS_TOKENS = 8192
"""Most tokens in one forward pass, wherever they can be read in several."""


def open_model(model: Any, path: str) -> tuple[Any, list[Any], torch.device]:
    """(the model, its layers, its device), wrapped so that it takes tensors as they are.

    The server's own wrapper tokenizes, splits batches into rows, and cannot handle a mask for each kind of layer.
    """
    inner = NNsight(model._module)
    return inner, list(attrgetter(path)(inner)), next(model._module.parameters()).device


def cache_argument(model: Any) -> str:
    """The name under which a transformers model takes its KV cache; releases from 5.24 on call it `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def pass_arguments(inner: Any, tokens: Tensor, pads: Tensor, start: int, keep: int, cache: Any) -> dict[str, Any]:
    """Arguments of an unsteered pass over `tokens` [rows, n], which are the columns from `start` on.

    keep: the number of last columns to return logits of; cache: of the columns before `start`, or None.
    """
    positions = torch.arange(start + tokens.shape[1], device=pads.device) - pads[:, None]
    return {
        "input_ids": tokens,
        "attention_mask": causal_mask(positions[:, start:], positions, mask_form(inner._module)),
        "position_ids": positions[:, start:].clamp(min=0),
        "logits_to_keep": keep,
        **_caching(inner, cache),
    }


def read_rows(
    inner: Any, layers: list[Any], given: dict[str, Any], ids: list[list[int]], reach: int, keep: int
) -> dict[str, Any]:
    """Read rows into a new `past`, with the residual of the last `reach` columns (0: all) and logits of `keep`."""
    device = next(inner._module.parameters()).device
    width = max(len(row) for row in ids)
    pads = torch.tensor([width - len(row) for row in ids], device=device)
    tokens = pad_rows(ids, device, left=True)
    cache, layer = DynamicCache(), layers[given["layer"]]
    past: dict[str, Any] = {"cache": cache, "pads": pads, "width": width, "logits": None, "residual": None}
    piece = max(1, PASS_TOKENS // len(ids))
    all_logits, residuals = [], []
    for start in range(0, width, piece):
        part = tokens[:, start : start + piece]
        after = width - start - part.shape[1]  # columns still to be read
        arguments = pass_arguments(inner, part, pads, start, max(1, min(part.shape[1], keep - after)), cache)
        with inner.trace(**arguments):
            residual = layer.output.save()
            logits = inner.output.logits.save()
        if not reach or after < reach:
            residuals.append(residual)
        if after < keep:
            all_logits.append(logits)
    if width:
        past["residual"] = torch.cat(residuals, 1)[:, -reach:] if reach else torch.cat(residuals, 1)
        past["logits"] = torch.cat(all_logits, 1)[:, -keep:]
    return past


def steered_logits(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], steering: dict[str, Any]
) -> Tensor:
    """Next-token logits [m, C, vocab] of every candidate after the last column of its row."""
    width, windows = past["width"], steering["windows"]
    near = [c for c, window in enumerate(windows) if 0 < window < width]
    parts: dict[int, Tensor] = {}
    if near:
        size = max(1, PASS_TOKENS // max(1, sum(windows[c] for c in near)))
        logits = [_branches(inner, layers, given, past, some, near) for some in _split(steering, size)]
        parts.update(zip(near, torch.cat(logits).unbind(1), strict=True))
    for c in range(len(windows)):
        if c not in parts:
            size = max(1, PASS_TOKENS // width)
            parts[c] = torch.cat([_whole(inner, layers, given, past, some, c) for some in _split(steering, size)])
    return torch.stack([parts[c] for c in range(len(windows))], 1)


def _split(steering: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The steering of at most `size` places each."""
    each = ("rows", "direction", "coefficients")
    starts = range(0, len(steering["rows"]), size)
    return [steering | {name: steering[name][i : i + size] for name in each} for i in starts]


def _branches(
    inner: Any,
    layers: list[Any],
    given: dict[str, Any],
    past: dict[str, Any],
    steering: dict[str, Any],
    near: list[int],
) -> Tensor:
    """Candidates whose windows leave part of the row unsteered, as branches of it side by side: [m, C, vocab]."""
    device, width = past["pads"].device, past["width"]
    windows = [steering["windows"][c] for c in near]
    rows = torch.tensor(steering["rows"], device=device)
    pads = past["pads"][rows][:, None]
    branch, offset, fork, ends = branch_layout(windows, device)
    shared = width - min(windows)
    positions, forks = width - 1 - pads + offset, width - 1 - pads + fork
    keys = torch.arange(shared, device=device) - pads
    mask = branch_mask(positions, branch, forks, keys, mask_form(inner._module))
    kept = past["residual"][rows][:, offset - 1]
    residual = kept + _added(steering, near, device)[:, branch].to(kept)
    return upper_logits(
        inner, layers, given, residual, mask, positions.clamp(min=0), ends, copy_cache(past["cache"], rows, shared)
    )


def _whole(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], steering: dict[str, Any], c: int
) -> Tensor:
    """A candidate that is steered at all positions of its row: [m, vocab]."""
    device = past["pads"].device
    rows = torch.tensor(steering["rows"], device=device)
    positions = torch.arange(past["width"], device=device) - past["pads"][rows][:, None]
    mask = causal_mask(positions, positions, mask_form(inner._module))
    kept = past["residual"][rows]
    residual = kept + _added(steering, [c], device).to(kept)
    return upper_logits(inner, layers, given, residual, mask, positions.clamp(min=0), 1, None)[:, -1]


def _added(steering: dict[str, Any], candidates: list[int], device: torch.device) -> Tensor:
    """[m, C, d] float32: the steering of each candidate."""
    coefficients = steering["coefficients"][:, candidates].to(device)
    return coefficients[:, :, None] * steering["direction"].to(device)[:, None]


def upper_logits(
    inner: Any,
    layers: list[Any],
    given: dict[str, Any],
    residual: Tensor,
    mask: Any,
    positions: Tensor,
    keep: Any,
    cache: Any,
) -> Tensor:
    """Logits of a pass through the layers above the hook layer, whose output is replaced by `residual` [m, n, d].

    keep: which of the n tokens to return logits of, or how many of the last (0: all); cache: to attend to, or None.
    """
    arguments = {
        "input_ids": torch.zeros_like(residual[..., 0], dtype=torch.int64),  # placeholders: embeddings are skipped
        "attention_mask": mask,
        "position_ids": positions,
        "logits_to_keep": keep,
        **_caching(inner, cache),
    }
    skipped = layers[: given["layer"] + 1]
    with inner.trace(**arguments):
        for layer in skipped:
            layer.skip(residual)
        logits = inner.output.logits.save()
    return logits


def copy_cache(cache: Any, rows: Tensor, length: int) -> Any:
    """The first columns of some rows, as a cache that a pass may append to."""
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys[rows, :, :length], layer.values[rows, :, :length], index)
    return copy


def sendable(results: dict[str, Any]) -> dict[str, Any]:
    """Tensors on the CPU and copied: of a view, the server would send the tensor that it is a view of."""
    return {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in results.items()}


def _caching(inner: Any, cache: Any) -> dict[str, Any]:
    return {"use_cache": False} if cache is None else {"use_cache": True, cache_argument(inner._module): cache}
