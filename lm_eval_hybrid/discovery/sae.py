"""A Top-K sparse autoencoder with a small dictionary, trained on the residuals at sentences' onsets.

The paper (section 3) trains it on sentences' mean residuals; `activations.ReadTrace.onsets` says why this does not.
"""

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.behaviors.manifest import Count, Index
from lm_eval_hybrid.decoding.steering import SparseEncoder, normalize


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class SaeRecipe:
    """How the autoencoder is trained.

    Attributes:
        layer: of the thinking model, after which residuals are read.
        latents: size of the dictionary.
        k: latents that may be active at once.
        restarts: trainings from different starts, of which the one with the smallest error is taken.
        steps: optimiser steps of each.
        rate: Adam's learning rate.
    """

    layer: Index
    latents: Count
    k: Count
    restarts: Count = 8
    steps: Count = 600
    rate: Annotated[float, Field(gt=0)] = 0.01

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SaeRecipe":
        if self.k > self.latents:
            raise ValueError(f"k must be at most latents ({self.latents}); found {self.k}")
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
        """Share of the variance of x that x' explains, over activations [n, d]."""
        unit = normalize(activations, self.encoder.mean)
        error = _error(unit, self.encoder.decoder_bias, self.decoder, self.encoder.weight, self.encoder.bias, self.k)
        return 1 - (error / (unit - unit.mean(0)).square().sum(-1).mean()).item()


def train(activations: Tensor, recipe: SaeRecipe, seed: int) -> Sae:
    """Trains `recipe.restarts` autoencoders on activations [n, d] float32, and returns the one that explains most."""
    generator = torch.Generator().manual_seed(seed)
    trained = [_train_one(activations, recipe, generator) for _ in range(recipe.restarts)]
    return max(trained, key=lambda sae: sae.explained(activations))


def _train_one(activations: Tensor, recipe: SaeRecipe, generator: torch.Generator) -> Sae:
    mean = activations.mean(0)
    unit = normalize(activations, mean)
    decoder_bias = unit.mean(0).clone().requires_grad_()
    decoder = _spread(unit - unit.mean(0), recipe.latents, generator).T.contiguous().requires_grad_()
    weight = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(recipe.latents, requires_grad=True)
    optimizer = torch.optim.Adam([decoder_bias, decoder, weight, bias], lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        error = _error(unit, decoder_bias, decoder, weight, bias, recipe.k)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=0, keepdim=True)
    encoder = SparseEncoder(mean, *(t.detach() for t in (decoder_bias, weight, bias)))
    return Sae(encoder, decoder.detach(), recipe.k)


def _error(unit: Tensor, decoder_bias: Tensor, decoder: Tensor, weight: Tensor, bias: Tensor, k: int) -> Tensor:
    """Mean squared distance between x and x', summed over dimensions."""
    code = F.linear(unit - decoder_bias, weight, bias)
    strongest = code.topk(k, dim=-1)
    sparse = torch.zeros_like(code).scatter(-1, strongest.indices, strongest.values.relu())
    return (unit - decoder_bias - sparse @ decoder.T).square().sum(-1).mean()


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows of `points` [n, d] far apart (as k-means++ starts), scaled to norm 1: no latent starts dead."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
    return F.normalize(points[chosen], dim=-1)
