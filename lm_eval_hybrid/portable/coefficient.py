"""The coefficient that a small network computes from the residual stream.

A plain function: it is also sent to a remote model's server, by its source (`portable/fitting.py`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding, gelu, linear, softplus

Network = tuple[Tensor, Tensor, Tensor, Tensor]
"""The tensors of a `steering.CoefficientNetwork`, in its order."""


def coefficient(residual: Tensor, category: Tensor, network: Network) -> Tensor:
    """residual [..., d] float32, category [...] int64 -> [...] float32, above 0."""
    trunk_weight, trunk_bias, heads_weight, heads_bias = network
    features = gelu(linear(residual, trunk_weight, trunk_bias))
    # Looked up by `embedding`, whose gradient, unlike an index's, is the same every time.
    heads = embedding(category, heads_weight), embedding(category, heads_bias[:, None])[..., 0]
    return softplus((heads[0] * features).sum(-1) + heads[1])
