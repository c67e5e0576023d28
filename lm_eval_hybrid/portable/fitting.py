"""What fitting vectors asks of a model on a server (`programs.py`): losses at steered segments, and their gradients.

Plain functions, as there. The steering is worked out there too: what crosses are the vectors, not what they add at
each token; and of what the model says, two numbers a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.portable.attention_masks import for_kinds, window_and_kinds
from lm_eval_hybrid.portable.passes import above, copied, opened, read_rows, sendable


def fit(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read segments, each steered as a branch of its row, in several ways.

    Args:
        model, path: see `programs.draft`.
        given:
            ids: the rows; layer: after which is steered.
            columns, branch, forks, category: [m, T]; see `discovery.vectors.segments.SegmentBatch`.
            tokens, logprobs: [t, K], what is wanted at each real token; see `portable.steering.divergence`.
            ways: of each its tensors by name: bias, and perhaps vectors, and perhaps all of trunk_weight, trunk_bias,
                heads_weight, heads_bias.
            gradient: names of the first way's tensors whose gradients are wanted.
            steering, divergence: the functions of `portable.steering`, which are sent along.

    Returns:
        norm: [t] float32, of the unsteered residual. loss [ways, t] float32, choice [ways, t]: see
        `discovery.vectors.steered_model.SteeredOutput`. And, by name, gradients of the sum of the first way's losses.
    """
    inner, layers, device = opened(model, path)
    columns = given["columns"].to(device)
    real = columns >= 0
    with torch.no_grad():
        past = read_rows(inner, layers, given, given["ids"], 0, 1)
        rows = torch.arange(len(columns), device=device)[:, None]
        residual = past["residual"][rows, (columns + past["pads"][:, None]).clamp(min=0)]
    found: dict[str, Any] = {"norm": residual[real].float().norm(dim=-1)}
    losses, choices = [], []
    for index, way in enumerate(given["ways"]):
        wanted = given["gradient"] if index == 0 else []
        tensors = {name: tensor.to(device).requires_grad_(name in wanted) for name, tensor in way.items()}
        with torch.set_grad_enabled(bool(wanted)):
            logits = _branched(inner, layers, given, past, residual, _added(given, residual, tensors))[real].float()
            loss = given["divergence"](logits, given["tokens"].to(device), given["logprobs"].to(device))
        if wanted:
            gradients = torch.autograd.grad(loss.sum(), [tensors[name] for name in wanted])
            found.update(zip(wanted, gradients, strict=True))
        losses.append(loss.detach())
        choices.append(logits.detach().argmax(-1))
    if losses:
        found.update(loss=torch.stack(losses), choice=torch.stack(choices))
    return sendable(found)


def _added(given: dict[str, Any], residual: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """[m, T, d]."""
    network = None
    if "trunk_weight" in tensors:
        network = tuple(tensors[name] for name in ("trunk_weight", "trunk_bias", "heads_weight", "heads_bias"))
    category = given["category"].to(residual.device)
    return given["steering"](residual, category, tensors["bias"], tensors.get("vectors"), network)


def _branched(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], residual: Tensor, added: Tensor
) -> Tensor:
    """Logits [m, T, vocab]."""
    device, width, pads = residual.device, past["width"], past["pads"]
    columns, branch, forks = (given[name].to(device) for name in ("columns", "branch", "forks"))
    keys = torch.arange(width, device=device)
    positions = keys - pads[:, None]  # [m, width], below 0 in padding
    sees_past = (positions[:, None] < forks[:, :, None]) & (positions >= 0)[:, None]
    own = columns[:, :, None] - columns[:, None, :]
    sees_own = (branch[:, :, None] == branch[:, None, :]) & (own >= 0) & (columns >= 0)[:, None, :]
    distance = torch.cat([columns[:, :, None] - positions[:, None], own], 2)
    window, kinds = window_and_kinds(inner._module.config)
    mask = for_kinds(torch.cat([sees_past, sees_own], 2), distance, inner._module.dtype, window, kinds)
    steered = residual + added.to(residual.dtype)
    cache = copied(past["cache"], torch.arange(len(columns), device=device), width)
    return above(inner, layers, given, steered, mask, columns.clamp(min=0), 0, cache)
