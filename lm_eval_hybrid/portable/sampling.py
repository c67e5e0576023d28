"""Draws a token from logits at a given point of the cumulative distribution."""

import torch
from torch import Tensor


def drawn(logits: Tensor, temperature: float, top_k: int, top_p: float, level: float) -> int:
    """The token of logits [vocab] at which the cumulative distribution, in the order of ids, passes `level`."""
    found = chances(logits, temperature, top_k, top_p)
    token = int(torch.searchsorted(found.cumsum(0), level * found.sum(), right=True))
    return min(token, int(found.nonzero()[-1]))  # rounding may leave the level at the very end


def chances(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[vocab] logits -> [vocab] float64 on the CPU: probabilities up to a factor, zero where filtered out."""
    scaled = logits.detach().cpu().double() / temperature
    if 0 < top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -torch.inf)
    found = scaled.softmax(0)
    if top_p < 1:
        ordered, order = found.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        found[order[before >= top_p]] = 0.0
    return found
