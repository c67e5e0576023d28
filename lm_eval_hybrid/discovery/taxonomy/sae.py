"""Top-K sparse autoencoders with small dictionaries over the residuals at sentences' onsets: recipe, rows, result.

The paper (section 3) trains them on sentences' mean residuals; `store.Store` says what speaks for their onsets.
Training is in `autoencoders`, and the choice among sizes and layers in `sweep`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.bundles.manifest import Count, Index
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder, normalize
from lm_eval_hybrid.discovery.activations.rows import Rows

READ = 4096  # rows read at once where all are read

Baseline = Literal["k-means", "gmm"]

MOST = 100  # latents: a taxonomy is to be read


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class SaeRecipe:
    """What is swept: one layer and one size train one autoencoder; of several, the best by its score wins.

    Attributes:
        layers: of the thinking model, after which residuals are read.
        sizes: of the dictionaries, and of the baselines.
        k: latents that may be active at once.
        seeds: trainings of each size, from different starts; with 1, stability is unknown and left out of the score.
        steps: optimiser steps at most.
        batch: rows that a step reads; all, where there are no more.
        rate: Adam's learning rate, which falls as a cosine.
        tolerance: training ends early once no autoencoder's error falls by this share any more; 0: it never does.
        baselines: set beside the autoencoders, never chosen.
        scored: sentences of each side, at most, that figures are of; and that baselines learn from.
        dimensions: principal components that the Gaussian mixture sees, at most.
    """

    layers: Annotated[tuple[Index, ...], Field(min_length=1)]
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    k: Count = 3
    seeds: Count = 3
    steps: Count = 600
    batch: Count = 1024
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.001
    baselines: tuple[Baseline, ...] = ("k-means", "gmm")
    scored: Count = 5000
    dimensions: Count = 32

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SaeRecipe":
        for name in ("layers", "sizes", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ; found {values}")
        if max(self.sizes) > MOST:
            raise ValueError(
                f"sizes must be at most {MOST}, or nobody could tell behaviors apart; found {max(self.sizes)}"
            )
        if self.k > min(self.sizes):
            raise ValueError(f"k must be at most the smallest size ({min(self.sizes)}); found {self.k}")
        for name in ("batch", "scored"):
            if getattr(self, name) < max(self.sizes):
                raise ValueError(
                    f"{name} must be at least the largest size ({max(self.sizes)}); found {getattr(self, name)}"
                )
        return self


@dataclass(frozen=True)
class Sae:
    """A trained autoencoder of x = (h - mean) / ||h - mean||.

    z = top-k of W_e (x - b_dec) + b_e, and x' = W_d relu(z) + b_dec.

    Attributes:
        encoder: what decoding needs of it.
        decoder: [d, latents] float32, columns of norm 1.
        k: latents that may be active at once.
    """

    encoder: SparseEncoder
    decoder: Tensor
    k: int

    def codes(self, activations: Tensor) -> Tensor:
        """How strongly each latent answers: activations [n, d] -> [n, latents]."""
        return self.encoder.codes(activations)

    def explained(self, activations: Tensor) -> float:
        """Share of the variance of x that x' explains, over activations [n, d]; 0 where x does not vary."""
        encoder = self.encoder
        unit = unit_rows(activations, encoder.mean)
        code = F.linear(unit - encoder.decoder_bias, encoder.weight, encoder.bias)
        strongest = code.topk(self.k, dim=-1)
        sparse = torch.zeros_like(code).scatter(-1, strongest.indices, strongest.values.relu())
        error = (unit - encoder.decoder_bias - sparse @ self.decoder.T).square().sum()
        total = (unit - unit.mean(0)).square().sum()
        # Rows that are all the same differ from their mean by rounding.
        return 1 - float(error / total) if total > 1e-10 * len(unit) else 0.0


def unit_rows(rows: Tensor, mean: Tensor) -> Tensor:
    """x [m, d] float32 of activations [m, d]; a row that is the mean itself has no direction and becomes 0."""
    return normalize(rows.float(), mean).nan_to_num(0.0)


def mean_of(activations: Rows) -> Tensor:
    """[d] float32: the mean of activations [n, d], READ rows at a time.

    Raises:
        HybridError: where there are none, or they are not finite, or all the same.
    """
    total = squares = torch.zeros((), dtype=torch.float64)
    broken = 0
    for first in range(0, len(activations), READ):
        rows = activations[first : first + READ].double()
        broken += int((~rows.isfinite().all(-1)).sum())
        total, squares = total + rows.sum(0), squares + rows.square().sum(0)
    count = len(activations)
    if not count:
        raise HybridError("activations must have a row a sentence; found none; give more traces")
    if broken:
        raise HybridError(
            f"activations must be finite numbers; found {broken} of {count} rows with others; read them again"
        )
    mean = total / count
    # What a constant's variance is not zero by is rounding, some 1e-16 of its square.
    if not ((squares / count - mean.square()) > 1e-12 * squares / count).any():
        raise HybridError(f"activations must differ; found {count} rows that are all the same; give other traces")
    return mean.float()
