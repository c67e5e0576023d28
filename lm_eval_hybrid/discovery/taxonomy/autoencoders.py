"""Top-K sparse autoencoders with small dictionaries, over the residuals at sentences' onsets, trained many at once.

The paper (section 3) trains on sentences' mean residuals; `store.ActivationStore` says why onsets are better.

All autoencoders of a sweep are trained together. Their latents are rows of one matrix, so that a step is four products
of the minibatch with it, whatever the number of autoencoders, and no x' is computed. With c = x - b_dec,
z = relu(top-k) and G = W_d^T W_d,

    ||c - W_d z||^2  =  ||c||^2 - 2 z . (W_d^T c) + z . (G z)

needs c only in products of x and of b_dec with directions. `python -m benchmarks.sweep` measures what that saves.

The same seed gives the same bytes on the same machine with the same number of threads; with another number, sums have
another order, and weights differ in their last digits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lm_eval_hybrid.bundles.manifest import Count, Index
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder, normalize
from lm_eval_hybrid.discovery.activations.store import ActivationRows

MAX_LATENTS = 100  # of a taxonomy that people can read
READ_ROWS = 4096  # rows read at a time, where all are read
START_ROWS = 4096  # rows among which the first directions are chosen
START_CANDIDATES = 8  # candidates for each further direction, of which the best is taken
WINDOW = 25  # steps between checks for dead latents and for progress
PATIENCE = 2  # windows without progress, after which the learning rate falls to 0 and training ends
LANDING = 0.2  # share of the steps that this fall takes
REVIVAL = 0.7  # share of the steps in which dead latents are restarted: later ones would not be trained

Baseline = Literal["k-means", "gmm"]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class SaeRecipe:
    """Settings of a sweep: each layer and size trains one autoencoder, and the one with the best score is chosen.

    Attributes:
        layers: of the thinking model, after which residuals are read.
        sizes: of the dictionaries, and of the baselines.
        k: latents that may be active at once.
        seeds: trainings of each size, from different starts; with 1, stability is unknown and no part of the score.
        steps: optimiser steps at most.
        batch: rows in a step; all, if there are no more.
        rate: Adam's learning rate, which falls as a cosine.
        tolerance: training ends early when no autoencoder's error falls by this share any more; 0: never.
        baselines: compared with the autoencoders, never chosen.
        scored: the most sentences of each side that metrics use, and that baselines learn from.
        dimensions: the most principal components that the Gaussian mixture uses.
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
        if max(self.sizes) > MAX_LATENTS:
            raise ValueError(
                f"sizes must be at most {MAX_LATENTS}, or nobody could tell behaviors apart; found {max(self.sizes)}"
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
class TopKAutoencoder:
    """A trained autoencoder of x = (h - mean) / ||h - mean||.

    z = top-k of W_e (x - b_dec) + b_e, and x' = W_d relu(z) + b_dec.

    Attributes:
        encoder: the part that decoding uses.
        decoder: [d, latents] float32, columns of norm 1.
        k: latents that may be active at once.
    """

    encoder: SparseEncoder
    decoder: Tensor
    k: int

    @property
    def size(self) -> int:
        """Number of latents."""
        return len(self.encoder.weight)

    def codes(self, activations: Tensor) -> Tensor:
        """The strength of each latent: activations [n, d] -> [n, latents]."""
        return self.encoder.codes(activations)

    def explained(self, activations: Tensor) -> float:
        """Share of the variance of x that x' explains, over activations [n, d]; 0 if x does not vary."""
        encoder = self.encoder
        unit = unit_rows(activations, encoder.mean)
        code = F.linear(unit - encoder.decoder_bias, encoder.weight, encoder.bias)
        strongest = code.topk(self.k, dim=-1)
        sparse = torch.zeros_like(code).scatter(-1, strongest.indices, strongest.values.relu())
        error = (unit - encoder.decoder_bias - sparse @ self.decoder.T).square().sum()
        total = (unit - unit.mean(0)).square().sum()
        # Rows that are all the same differ from their mean by rounding.
        return 1 - float(error / total) if total > 1e-10 * len(unit) else 0.0


@dataclass(frozen=True)
class TrainedAutoencoder:
    """One autoencoder of `train_many`: how often one of its latents was restarted, and the steps of its training."""

    sae: TopKAutoencoder
    revived: int
    steps: int


def unit_rows(rows: Tensor, mean: Tensor) -> Tensor:
    """x [m, d] float32 of activations [m, d]; a row equal to the mean has no direction and becomes 0."""
    return normalize(rows.float(), mean).nan_to_num(0.0)


def mean_of(activations: ActivationRows) -> Tensor:
    """[d] float32: the mean of activations [n, d], READ_ROWS rows at a time.

    Raises:
        HybridError: there are none, or they are not finite, or all the same.
    """
    total = squares = torch.zeros((), dtype=torch.float64)
    broken = 0
    for first in range(0, len(activations), READ_ROWS):
        rows = activations[first : first + READ_ROWS].double()
        broken += int((~rows.isfinite().all(-1)).sum())
        total, squares = total + rows.sum(0), squares + rows.square().sum(0)
    count = len(activations)
    if not count:
        raise HybridError("there are no activations; autoencoders need one row for each sentence; give more traces")
    if broken:
        raise HybridError(f"{broken} of {count} rows of activations are not finite; collect them again")
    mean = total / count
    # A constant's variance differs from 0 by rounding, about 1e-16 of its square.
    if not ((squares / count - mean.square()) > 1e-12 * squares / count).any():
        raise HybridError(f"all {count} rows of activations are the same; give other traces")
    return mean.float()


def train_many(activations: ActivationRows, recipe: SaeRecipe, seed: int) -> tuple[TrainedAutoencoder, ...]:
    """Train `recipe.seeds` autoencoders of each size, all on the same minibatches.

    Memory is bounded by START_ROWS and `recipe.batch` rows and by the autoencoders.

    Args:
        activations: [n, d] of any float type; computation is in float32.

    Returns:
        All of the first size, then all of the next.

    Raises:
        HybridError: activations are not finite, do not vary, or have too few distinct rows for the largest size.
    """
    mean = mean_of(activations)
    stack = _start(activations, mean, recipe, seed)
    run = _TrainingRun(stack, recipe, seed)
    with tqdm(total=recipe.steps, desc=f"{len(stack.sizes)} autoencoders") as bar:
        for unit in _minibatches(activations, mean, recipe.batch, seed):
            run.step(unit)
            bar.update()
            if run.steps == run.last:
                break
            bar.total = run.last
    pairs = zip(stack.separate(mean), run.revived.tolist(), strict=True)
    return tuple(TrainedAutoencoder(sae, revived, run.steps) for sae, revived in pairs)


class _TrainingRun:
    """The progress of `train_many`, and what it has counted since its last check."""

    def __init__(self, stack: "_Stack", recipe: SaeRecipe, seed: int) -> None:
        self.stack, self.recipe = stack, recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(stack.parameters, lr=recipe.rate)
        self.steps, self.last = 0, recipe.steps
        self.landing: tuple[int, float] | None = None  # the step at which training began to end, and its rate
        self.revived = torch.zeros(len(stack.sizes), dtype=torch.int64)
        self.used = torch.zeros(len(stack.owner), dtype=torch.bool)
        self.error = torch.zeros(len(stack.sizes))
        self.best = torch.full((len(stack.sizes),), math.inf)
        self.stale = 0

    def rate(self) -> float:
        begun, rate = self.landing or (0, self.recipe.rate)
        return rate * (1 + math.cos(math.pi * (self.steps - begun) / (self.last - begun))) / 2

    def step(self, unit: Tensor) -> None:
        """Train on a minibatch [b, d]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        errors, active = self.stack.errors(unit)
        self.optimizer.zero_grad()
        errors.mean(0).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.stack.decoder.copy_(F.normalize(self.stack.decoder, dim=1))
        self.steps += 1
        self.used |= active.any(0)
        self.error += errors.detach().mean(0)
        if self.steps % WINDOW == 0:
            self._check_progress(unit, errors.detach())

    def _check_progress(self, unit: Tensor, errors: Tensor) -> None:
        if self.steps <= REVIVAL * self.recipe.steps and not self.landing:
            self.revived += self.stack.revive(~self.used, unit, errors, self.optimizer, self.generator)
        better = self.error < self.best * (1 - self.recipe.tolerance)
        self.stale = 0 if better.any() or not self.recipe.tolerance else self.stale + 1
        self.best = torch.minimum(self.best, self.error)
        if self.stale == PATIENCE and not self.landing:
            self.landing = (self.steps, self.rate())
            self.last = min(self.last, self.steps + math.ceil(LANDING * self.recipe.steps))
        self.used.zero_()
        self.error.zero_()


@dataclass(frozen=True)
class _Stack:
    """Autoencoders in training, with the latents of all in one matrix.

    Attributes:
        sizes: latents of each.
        k: latents of each that may be active at once.
        owner: [latents of all] int64, the autoencoder of each.
        weight, decoder: [latents of all, d]; bias: [latents of all]; decoder_bias: [autoencoders, d].
    """

    sizes: tuple[int, ...]
    k: int
    owner: Tensor
    weight: Tensor
    bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.decoder, self.decoder_bias

    def errors(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Of points [b, d]: squared distances between x and x' [b, autoencoders]; which latents are active [b, all]."""
        own = self.decoder_bias[self.owner]
        code = F.linear(unit, self.weight, self.bias - (self.weight * own).sum(-1))
        along = F.linear(unit, self.decoder, -(self.decoder * own).sum(-1))
        centred = F.linear(unit, -2 * self.decoder_bias, self.decoder_bias.square().sum(-1))
        explained, active = [], []
        split = (code.split(self.sizes, 1), along.split(self.sizes, 1), self.decoder.split(self.sizes))
        for codes, products, directions in zip(*split, strict=True):
            strongest = codes.topk(self.k, dim=-1)
            sparse = torch.zeros_like(codes).scatter(-1, strongest.indices, strongest.values.relu())
            explained.append((sparse * (2 * products - sparse @ (directions @ directions.T))).sum(-1))
            active.append(sparse.detach() > 0)
        return unit.square().sum(-1, keepdim=True) + centred - torch.stack(explained, 1), torch.cat(active, 1)

    @torch.no_grad()
    def revive(
        self, dead: Tensor, unit: Tensor, errors: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> Tensor:
        """Restart dead latents at points that are badly explained; returns how many of each autoencoder.

        Args:
            dead: [latents of all] bool.
            unit: [b, d], points to choose from, with a probability proportional to their error.
            errors: [b, autoencoders].
        """
        for number in self.owner[dead].unique().tolist():
            latents = (dead & (self.owner == number)).nonzero()[:, 0]
            chances = errors[:, number].clamp(min=1e-12)
            chosen = unit[torch.multinomial(chances, len(latents), generator=generator)]
            self.decoder[latents] = F.normalize(chosen - self.decoder_bias[number], dim=-1)
            self.weight[latents], self.bias[latents] = self.decoder[latents], 0.0
            for parameter in (self.weight, self.bias, self.decoder):
                for name in ("exp_avg", "exp_avg_sq"):  # Adam's state of the old latents
                    optimizer.state[parameter][name][latents] = 0.0
        return self.owner[dead].bincount(minlength=len(self.sizes))

    def separate(self, mean: Tensor) -> Iterator[TopKAutoencoder]:
        """The autoencoders one by one."""
        split = (tensor.detach().split(self.sizes) for tensor in (self.weight, self.bias, self.decoder))
        for weight, bias, decoder, own in zip(*split, self.decoder_bias.detach(), strict=True):
            encoder = SparseEncoder(mean, own.clone(), weight.clone(), bias.clone())
            yield TopKAutoencoder(encoder, decoder.T.contiguous(), self.k)


def _start(activations: ActivationRows, mean: Tensor, recipe: SaeRecipe, seed: int) -> _Stack:
    """Initial weights: directions far apart, shared by all sizes of one seed, and encoders that read along them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(activations), generator=generator)
    unit = unit_rows(activations[order[:START_ROWS].sort().values], mean)
    centre = unit.mean(0)
    # One unlucky point spoils a training: of three plain starts, one missed a behavior of the embedded pair, and the
    # right size looked unstable.
    starts = [_spread(unit - centre, max(recipe.sizes), generator) for _ in range(recipe.seeds)]
    sizes = tuple(size for size in recipe.sizes for _ in starts)
    decoder = torch.cat([start[:size] for size in recipe.sizes for start in starts])
    tensors = (decoder, torch.zeros(len(decoder)), decoder, centre.repeat(len(sizes), 1))
    return _Stack(
        sizes,
        recipe.k,
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        *(tensor.clone().requires_grad_() for tensor in tensors),
    )


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows of `points` [n, d] far apart, scaled to norm 1, so that no latent starts dead.

    As in k-means++, but each time the best of START_CANDIDATES points: the one that leaves all points nearest to a row.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        if not distance.any():
            raise HybridError(
                f"activations have {len(chosen)} distinct rows; {count} latents need at least as many; give more "
                "traces, or ask for fewer latents"
            )
        candidates = torch.multinomial(distance, START_CANDIDATES, replacement=True, generator=generator)
        left = torch.minimum(distance, torch.cdist(points[candidates], points).square())
        chosen.append(int(candidates[left.sum(-1).argmin()]))
        # Not by cdist, which multiplies matrices: the distance between equal rows must be exactly 0.
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
    return F.normalize(points[chosen], dim=-1)


def _minibatches(activations: ActivationRows, mean: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless x [b, d] in random order: each row once an epoch, except for a remainder smaller than `size`."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(activations))
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for some in order[: len(order) // size * size].split(size):
            yield unit_rows(activations[some.sort().values], mean)  # ascending, as a file is read
