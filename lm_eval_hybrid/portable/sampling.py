"""Which token follows: the tokens that may be chosen, a draw among them, and the likeliest of several candidates.

A draw is a function of a number in [0, 1), its `level`, so that the same seed draws the same token in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def allowed_logits(logits: Tensor, width: int | None, blocked: Sequence[int]) -> Tensor:
    """Logits [..., vocab] of the ids below `width` (None: all); those of `blocked` ids are -inf."""
    if width is not None:
        logits = logits[..., :width]
    if blocked:
        logits = logits.index_fill(-1, torch.tensor(blocked, device=logits.device), -math.inf)
    return logits


def drawn(logits: Tensor, temperature: float, top_k: int, top_p: float, level: float) -> int:
    """The token of logits [vocab] at which the cumulative distribution, in the order of ids, exceeds `level`."""
    weights = chances(logits, temperature, top_k, top_p)
    token = int(torch.searchsorted(weights.cumsum(0), level * weights.sum(), right=True))
    return min(token, int(weights.nonzero()[-1]))  # rounding may put the level at the very end


def chances(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[vocab] logits -> [vocab] float64 on the CPU: unnormalised probabilities, zero where filtered out."""
    scaled = logits.detach().cpu().double() / temperature
    if 0 < top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -torch.inf)
    weights = scaled.softmax(0)
    if top_p < 1:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        weights[order[before >= top_p]] = 0.0
    return weights


def likeliest(
    tokens: Sequence[int], preferred: Sequence[int], known: Sequence[int], logprobs: Sequence[float], floor: float
) -> int:
    """The index of the candidate whose token is likeliest; of equals the first in the order `preferred`.

    Args:
        tokens: of each candidate.
        known, logprobs: some tokens and their log-probabilities; no other token's is higher than `floor`.

    Returns:
        -1 where a token that is not known may be likelier.
    """
    judged = dict(zip(known, logprobs, strict=True))
    values = [judged.get(tokens[c], -math.inf) for c in preferred]
    best = max(values)
    unknown = any(tokens[c] not in judged for c in preferred)
    return -1 if unknown and best <= floor else preferred[values.index(best)]
