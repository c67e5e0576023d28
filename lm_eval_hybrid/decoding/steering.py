"""What a bundle steers with: bias, behavior vectors, the encoder that names a behavior, the coefficient network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from lm_eval_hybrid.decoding.policy import Directions
from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.behaviors.bundle import Bundle


def normalize(residual: Tensor, mean: Tensor) -> Tensor:
    """(h - mean) / ||h - mean||, row by row: [rows, d] -> [rows, d]."""
    centred = residual - mean
    return centred / centred.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class SparseEncoder:
    """The encoder half of a Top-K SAE over the thinking model's residual stream (DESIGN, section 2). All float32.

    Attributes:
        mean: [d_thinking], subtracted before the residual is scaled to unit length.
        decoder_bias: [d_thinking], subtracted after it.
        weight: [latents, d_thinking].
        bias: [latents].
    """

    mean: Tensor
    decoder_bias: Tensor
    weight: Tensor
    bias: Tensor

    def category(self, residual: Tensor) -> Tensor:
        """The strongest latent: residual [rows, d_thinking] float32 -> [rows] int64."""
        return self.codes(residual).argmax(-1)

    def codes(self, residual: Tensor) -> Tensor:
        """How strongly each latent answers: residual [rows, d_thinking] float32 -> [rows, latents]."""
        return linear(normalize(residual, self.mean) - self.decoder_bias, self.weight, self.bias)

    def to(self, device: torch.device) -> SparseEncoder:
        return SparseEncoder(*(t.to(device) for t in (self.mean, self.decoder_bias, self.weight, self.bias)))


@dataclass(frozen=True)
class CoefficientNetwork:
    """The `mlp` selector's network: the base model's residual -> one coefficient a latent. All float32.

    Attributes:
        trunk_weight: [m, d_base]; trunk_bias: [m]; heads_weight: [latents, m]; heads_bias: [latents].
    """

    trunk_weight: Tensor
    trunk_bias: Tensor
    heads_weight: Tensor
    heads_bias: Tensor

    def coefficient(self, residual: Tensor, category: Tensor) -> Tensor:
        """residual [rows, d_base] float32, category [rows] int64 -> [rows] float32."""
        features = gelu(linear(residual, self.trunk_weight, self.trunk_bias))
        return (self.heads_weight[category] * features).sum(-1) + self.heads_bias[category]

    def to(self, device: torch.device) -> CoefficientNetwork:
        tensors = (self.trunk_weight, self.trunk_bias, self.heads_weight, self.heads_bias)
        return CoefficientNetwork(*(t.to(device) for t in tensors))


@dataclass(frozen=True)
class Steering:
    """What a policy steers with.

    Attributes:
        layer: the base model's layer whose output is steered.
        bias: [d_base] float32, part of every steering vector.
        vectors: [latents, d_base] float32, row = latent; zeros where the bundle names no behavior for it.
        keys: the behavior's key, per latent.
        sae_layer: the thinking model's layer whose output `encoder` reads.
        network: the `mlp` selector's network, where the bundle has one.
    """

    layer: int
    bias: Tensor
    vectors: Tensor
    keys: tuple[str, ...]
    sae_layer: int
    encoder: SparseEncoder
    network: CoefficientNetwork | None = None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Steering:
        """The steering tensors of a loaded bundle."""
        tensors, manifest = bundle.tensors, bundle.manifest
        encoder = SparseEncoder(
            mean=tensors["sae.mean"],
            decoder_bias=tensors["sae.decoder.bias"],
            weight=tensors["sae.encoder.weight"],
            bias=tensors["sae.encoder.bias"],
        )
        network = None
        if "coefficient.trunk.weight" in tensors:
            names = ("trunk.weight", "trunk.bias", "heads.weight", "heads.bias")
            network = CoefficientNetwork(*(tensors[f"coefficient.{name}"] for name in names))
        return cls(
            layer=manifest.steering.layer,
            bias=bundle.bias,
            vectors=bundle.vectors,
            keys=bundle.keys,
            sae_layer=manifest.sae.layer,
            encoder=encoder,
            network=network,
        )

    def directions(self, kind: Directions, seed: int) -> tuple[Tensor, Tensor]:
        """(bias [d_base], vectors [latents, d_base]); for kind `random` Gaussian ones of the same norms."""
        if kind == "bundle":
            return self.bias, self.vectors
        latents, width = self.vectors.shape
        noise = torch.randn(latents + 1, width, generator=torch.Generator().manual_seed(seed))
        replaced = torch.cat([self.bias[None], self.vectors]).cpu()
        scaled = noise / noise.norm(dim=-1, keepdim=True) * replaced.norm(dim=-1, keepdim=True)
        return scaled[0], scaled[1:]

    def require_network(self) -> CoefficientNetwork:
        """The `mlp` selector's network.

        Raises:
            HybridError: where the bundle has none.
        """
        if self.network is None:
            raise HybridError("select=mlp needs a bundle with coefficient.* tensors; found none; use another select")
        return self.network
