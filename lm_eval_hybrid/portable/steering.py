"""Steering as vectors are fitted, and the loss: what is added to the base's residual stream, and the divergence."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding, gelu, linear, softplus

Network = tuple[Tensor, Tensor, Tensor, Tensor]
"""A coefficient network: trunk weight [m, d], trunk bias [m], heads weight [latents, m], heads bias [latents]."""


def steering(
    residual: Tensor, category: Tensor, bias: Tensor, vectors: Tensor | None, network: Network | None
) -> Tensor:
    """The steering added to residuals [m, T, d] of categories [m, T] int64: [m, T, d].

    It is the bias [d], plus the category's row of `vectors` [latents, d], times the network's coefficient, as far as
    vectors and network are given.
    """
    if vectors is None:
        return bias.expand(*category.shape, -1)
    # Not vectors[category]: the gradient of an index is summed in any order by several threads, that of embedding not.
    direction = bias + embedding(category, vectors)
    if network is None:
        return direction
    return coefficient(residual.float(), category, network)[..., None] * direction


def coefficient(residual: Tensor, category: Tensor, network: Network) -> Tensor:
    """The network's coefficient, above 0: residual [..., d] float32, category [...] int64 -> [...] float32."""
    trunk_weight, trunk_bias, heads_weight, heads_bias = network
    features = gelu(linear(residual, trunk_weight, trunk_bias))
    heads = embedding(category, heads_weight), embedding(category, heads_bias[:, None])[..., 0]
    return softplus((heads[0] * features).sum(-1) + heads[1])


def divergence(logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
    """[t] float32, in nats: the Kullback-Leibler divergence of the distribution of logits [t, vocab] from a target.

    The target has `logprobs` [t, K] at `tokens` [t, K] (below 0: none). Where it is one token with log-probability 0,
    the divergence is that token's cross-entropy.
    """
    ours = logits.float().log_softmax(-1).gather(1, tokens.clamp(min=0))
    return (logprobs.exp() * (logprobs - ours)).masked_fill(tokens < 0, 0.0).sum(-1)
