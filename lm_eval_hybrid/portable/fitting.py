"""What a server runs while vectors are fitted to its model: losses at steered segments, and their gradients.

The vectors travel, not what they add at each token; two numbers a token, and the gradients, come back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.portable.attention_masks import branch_mask, mask_form
from lm_eval_hybrid.portable.passes import copy_cache, open_model, read_rows, sendable, upper_logits
from lm_eval_hybrid.portable.steering import divergence, steering


def fit(model: Any, path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read segments, each as a branch of its row, once for each of several sets of vectors.

    Args:
        model, path: see `programs.describe`.
        given:
            ids: the rows; layer: the layer whose output is steered.
            columns, branch, forks, category: [m, T], of the segments' tokens, as laid out by discovery's segments.
            tokens, logprobs: [t, K], the target at each real token; see `steering.divergence`.
            ways: sets of tensors by name: bias, perhaps vectors, perhaps all of a coefficient network.
            gradient: names of the tensors of the first set whose gradients are returned.

    Returns:
        norm: [t] float32, of the unsteered residual. loss [ways, t] float32, in nats, and choice [ways, t], the
        likeliest token. By name, the gradients of the sum of the first set's losses.
    """
    inner, layers, device = open_model(model, path)
    columns = given["columns"].to(device)
    real = columns >= 0
    with torch.no_grad():
        past = read_rows(inner, layers, given, given["ids"], 0, 1)
        rows = torch.arange(len(columns), device=device)[:, None]
        residual = past["residual"][rows, (columns + past["pads"][:, None]).clamp(min=0)]
    results: dict[str, Any] = {"norm": residual[real].float().norm(dim=-1)}
    losses, choices = [], []
    for index, way in enumerate(given["ways"]):
        learned = given["gradient"] if index == 0 else []
        tensors = {name: tensor.to(device).requires_grad_(name in learned) for name, tensor in way.items()}
        with torch.set_grad_enabled(bool(learned)):
            logits = _branches(inner, layers, given, past, residual, _added(given, residual, tensors))[real].float()
            loss = divergence(logits, given["tokens"].to(device), given["logprobs"].to(device))
        if learned:
            gradients = torch.autograd.grad(loss.sum(), [tensors[name] for name in learned])
            results.update(zip(learned, gradients, strict=True))
        losses.append(loss.detach())
        choices.append(logits.detach().argmax(-1))
    if losses:
        results.update(loss=torch.stack(losses), choice=torch.stack(choices))
    return sendable(results)


def _added(given: dict[str, Any], residual: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """[m, T, d]."""
    network = None
    if "trunk_weight" in tensors:
        network = tensors["trunk_weight"], tensors["trunk_bias"], tensors["heads_weight"], tensors["heads_bias"]
    category = given["category"].to(residual.device)
    return steering(residual, category, tensors["bias"], tensors.get("vectors"), network)


def _branches(
    inner: Any, layers: list[Any], given: dict[str, Any], past: dict[str, Any], residual: Tensor, added: Tensor
) -> Tensor:
    """Logits [m, T, vocab]."""
    device, width = residual.device, past["width"]
    columns, branch, forks = (given[name].to(device) for name in ("columns", "branch", "forks"))
    keys = torch.arange(width, device=device) - past["pads"][:, None]
    mask = branch_mask(columns, branch, forks, keys, mask_form(inner._module))
    steered = residual + added.to(residual.dtype)
    cache = copy_cache(past["cache"], torch.arange(len(columns), device=device), width)
    return upper_logits(inner, layers, given, steered, mask, columns.clamp(min=0), 0, cache)
