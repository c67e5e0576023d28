"""The tensors that steer: bias, behavior vectors, the encoder that picks a category, the coefficient network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import Directions
from lm_eval_hybrid.portable.steering import Network, coefficient

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.manifest import Behavior
    from lm_eval_hybrid.bundles.suite import Part, Suite


def normalize(residual: Tensor, mean: Tensor) -> Tensor:
    """(h - mean) / ||h - mean||, row by row: [rows, d] -> [rows, d]."""
    centred = residual - mean
    return centred / centred.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class SparseEncoder:
    """The encoder half of a Top-K SAE over the thinking model's residual stream. All float32.

    Attributes:
        mean: [d_thinking], subtracted before the residual is scaled to unit length.
        decoder_bias: [d_thinking], subtracted after it.
        weight: [latents, d_thinking].
        bias: [latents].
        unit: whether the residual is centred and scaled to unit length; if not, it is encoded as it is.
    """

    mean: Tensor
    decoder_bias: Tensor
    weight: Tensor
    bias: Tensor
    unit: bool = True

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SparseEncoder:
        """The encoder of a bundle's SAE."""
        tensors = bundle.tensors
        return cls(
            mean=tensors["sae.mean"],
            decoder_bias=tensors["sae.decoder.bias"],
            weight=tensors["sae.encoder.weight"],
            bias=tensors["sae.encoder.bias"],
            unit=bundle.manifest.sae.normalization == "unit",
        )

    def category(self, residual: Tensor) -> Tensor:
        """The latent with the largest pre-activation: residual [rows, d_thinking] float32 -> [rows] int64."""
        return self.codes(residual).argmax(-1)

    def codes(self, residual: Tensor) -> Tensor:
        """Pre-activations: residual [rows, d_thinking] float32 -> [rows, latents]."""
        centred = normalize(residual, self.mean) if self.unit else residual
        return linear(centred - self.decoder_bias, self.weight, self.bias)

    def rows(self, latents: list[int]) -> SparseEncoder:
        """The same encoder with these latents only, in this order."""
        return replace(self, weight=self.weight[latents], bias=self.bias[latents])

    def to(self, device: torch.device) -> SparseEncoder:
        return SparseEncoder(
            self.mean.to(device), self.decoder_bias.to(device), self.weight.to(device), self.bias.to(device), self.unit
        )


@dataclass(frozen=True)
class JoinedEncoder:
    """Encoders of several SAEs over one residual stream, their latents numbered consecutively."""

    parts: tuple[SparseEncoder, ...]

    def category(self, residual: Tensor) -> Tensor:
        """The latent with the largest pre-activation of all: residual [rows, d_thinking] float32 -> [rows] int64."""
        return torch.cat([part.codes(residual) for part in self.parts], dim=-1).argmax(-1)

    def to(self, device: torch.device) -> JoinedEncoder:
        return JoinedEncoder(tuple(part.to(device) for part in self.parts))


@dataclass(frozen=True)
class CoefficientNetwork:
    """The `mlp` selector's network, from the base model's residual to one coefficient for each latent. All float32.

    Attributes:
        trunk_weight: [m, d_base]; trunk_bias: [m]; heads_weight: [latents, m]; heads_bias: [latents].
    """

    trunk_weight: Tensor
    trunk_bias: Tensor
    heads_weight: Tensor
    heads_bias: Tensor

    def coefficient(self, residual: Tensor, category: Tensor) -> Tensor:
        """residual [rows, d_base] float32, category [rows] int64 -> [rows] float32, above 0."""
        return coefficient(residual, category, self.tensors)

    @property
    def tensors(self) -> Network:
        """All four tensors, as `portable.steering.coefficient` takes them."""
        return self.trunk_weight, self.trunk_bias, self.heads_weight, self.heads_bias

    def to(self, device: torch.device) -> CoefficientNetwork:
        return CoefficientNetwork(*(tensor.to(device) for tensor in self.tensors))


@dataclass(frozen=True)
class Steering:
    """The steering tensors of one suite of bundles.

    Attributes:
        layer: the base model's layer whose output is steered.
        bias: [d_base] float32, part of every steering vector.
        vectors: [latents, d_base] float32, one for each latent; zeros where the bundle names no behavior for it.
        keys: the behavior of each latent.
        sae_layer: the thinking model's layer whose output `encoder` reads.
        network: the `mlp` selector's network; None where there is none.
    """

    layer: int
    bias: Tensor
    vectors: Tensor
    keys: tuple[str, ...]
    sae_layer: int
    encoder: SparseEncoder | JoinedEncoder
    network: CoefficientNetwork | None = None

    @classmethod
    def from_suite(cls, suite: Suite) -> Steering:
        """The steering tensors of loaded bundles."""
        frame, *added = suite.parts
        bundle, manifest = frame.bundle, suite.manifest
        keys = [f"latent-{latent}" for latent in range(manifest.sae.latents)]
        vectors = bundle.bias.new_zeros(len(keys), bundle.bias.shape[0])
        encoders = [SparseEncoder.from_bundle(bundle)]
        for part in suite.parts:
            if not part.own_latents:
                for behavior in part.behaviors:
                    keys[behavior.latent] = behavior.key
                    vectors[behavior.latent] = _row(part, behavior, bundle)
        for part in added:
            if part.own_latents and part.behaviors:
                encoders.append(SparseEncoder.from_bundle(part.bundle).rows([b.latent for b in part.behaviors]))
                keys += [behavior.key for behavior in part.behaviors]
                rows = [_row(part, behavior, bundle) for behavior in part.behaviors]
                vectors = torch.cat([vectors, torch.stack(rows)])
        return cls(
            layer=manifest.steering.layer,
            bias=bundle.bias,
            vectors=vectors,
            keys=tuple(keys),
            sae_layer=manifest.sae.layer,
            encoder=encoders[0] if len(encoders) == 1 else JoinedEncoder(tuple(encoders)),
            network=None if added else _network(bundle),
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
            HybridError: there is none.
        """
        if self.network is None:
            raise HybridError(
                "there are no coefficient.* tensors, which select=mlp needs; use one bundle that has them"
            )
        return self.network


def _row(part: Part, behavior: Behavior, frame: Bundle) -> Tensor:
    """A row of `Steering.vectors`, such that the frame's bias plus this row is the part's own bias plus vector."""
    vector = part.vector(behavior)
    return vector if part.bundle is frame else vector + (part.bundle.bias - frame.bias)


def _network(bundle: Bundle) -> CoefficientNetwork | None:
    names = ("trunk.weight", "trunk.bias", "heads.weight", "heads.bias")
    if "coefficient.trunk.weight" not in bundle.tensors:
        return None
    return CoefficientNetwork(*(bundle.tensors[f"coefficient.{name}"] for name in names))
