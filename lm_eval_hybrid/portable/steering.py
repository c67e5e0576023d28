"""What is added to the base's residual stream while vectors are fitted, and what that is to lead to.

Plain functions: they are also sent to a remote model's server, by their source (`portable/fitting.py`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding

from lm_eval_hybrid.portable.coefficient import Network, coefficient


def steering(
    residual: Tensor, category: Tensor, bias: Tensor, vectors: Tensor | None, network: Network | None
) -> Tensor:
    """What is added to residuals [m, T, d] of categories [m, T]: the bias [d], with the category's vector of
    [latents, d] where there are some, times the network's coefficient where there is one."""
    if vectors is None:
        return bias.expand(*category.shape, -1)
    # Not vectors[category]: with several threads an index's gradient is added up in any order, and this one's is not.
    direction = bias + embedding(category, vectors)
    if network is None:
        return direction
    return coefficient(residual.float(), category, network)[..., None] * direction


def divergence(logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
    """[t] float32: the Kullback-Leibler divergence, in nats, of the distribution of logits [t, vocab] from one that has
    `logprobs` [t, K] at `tokens` [t, K] (below 0: none). Of one token with log-probability 0: its cross-entropy."""
    ours = logits.float().log_softmax(-1).gather(1, tokens.clamp(min=0))
    return (logprobs.exp() * (logprobs - ours)).masked_fill(tokens < 0, 0.0).sum(-1)
