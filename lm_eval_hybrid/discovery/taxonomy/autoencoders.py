"""Training of all autoencoders of a sweep at once, from minibatches.

Their latents stand below one another in one matrix, so that a step is four products of the minibatch with it, whatever
the number of autoencoders, and no x' is written down. With c = x - b_dec, z = relu(top-k) and G = W_d^T W_d,

    ||c - W_d z||^2  =  ||c||^2 - 2 z . (W_d^T c) + z . (G z)

needs c only as products of x and of b_dec with directions. `python -m benchmarks.sweep` measures what that saves.

The same seed gives the same bytes on the same machine with as many threads; with more or fewer, sums are in another
order, and weights differ in their last digits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations.rows import Rows
from lm_eval_hybrid.discovery.taxonomy.sae import Sae, SaeRecipe, mean_of, unit_rows

STARTED = 4096  # rows among which the first directions are looked for
TRIED = 8  # points of which the best becomes the next first direction
WINDOW = 25  # steps after which it is asked what is dead and what still gets better
PATIENCE = 2  # windows without progress after which training begins to end
LANDING = 0.2  # share of the steps in which the rate still falls to 0 then
REVIVING = 0.7  # share of the steps during which dead latents start anew: later ones would not be trained


@dataclass(frozen=True)
class Trained:
    """One autoencoder of many.

    Attributes:
        size: of its dictionary.
        seed: number of its start, from 0.
        revived: how often a dead latent of it started anew.
        steps: that it was trained for.
    """

    sae: Sae
    size: int
    seed: int
    revived: int
    steps: int


def train_many(activations: Rows, recipe: SaeRecipe, seed: int) -> tuple[Trained, ...]:
    """Trains `recipe.seeds` autoencoders of each size: all of the first size, then all of the next.

    They read the same minibatches. Memory is bounded by STARTED and `recipe.batch` rows and by the autoencoders.

    Args:
        activations: [n, d] of any float type; what is computed is float32.

    Raises:
        HybridError: where activations are not finite, do not vary, or have too few distinct rows for the largest size.
    """
    mean = mean_of(activations)
    stack = _start(activations, mean, recipe, seed)
    run = _Run(stack, recipe, seed)
    with tqdm(total=recipe.steps, desc=f"{len(stack.sizes)} autoencoders") as bar:
        for unit in _minibatches(activations, mean, recipe.batch, seed):
            run.step(unit)
            bar.update()
            if run.steps == run.last:
                break
            bar.total = run.last
    return tuple(
        Trained(sae, size, number % recipe.seeds, revived, run.steps)
        for number, (sae, size, revived) in enumerate(
            zip(stack.apart(mean), stack.sizes, run.revived.tolist(), strict=True)
        )
    )


class _Run:
    """One run of `train_many`: how far it is, and what it saw since it last asked what is dead."""

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
        """Trains on a minibatch [b, d]."""
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
            self._look_back(unit, errors.detach())

    def _look_back(self, unit: Tensor, errors: Tensor) -> None:
        if self.steps <= REVIVING * self.recipe.steps and not self.landing:
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
    """Autoencoders while they are trained, their latents below one another.

    Attributes:
        sizes: latents of each.
        k: latents of each that may be active at once.
        owner: [latents of all] int64, whose each is.
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
        for answers, products, directions in zip(*split, strict=True):
            strongest = answers.topk(self.k, dim=-1)
            sparse = torch.zeros_like(answers).scatter(-1, strongest.indices, strongest.values.relu())
            explained.append((sparse * (2 * products - sparse @ (directions @ directions.T))).sum(-1))
            active.append(sparse.detach() > 0)
        return unit.square().sum(-1, keepdim=True) + centred - torch.stack(explained, 1), torch.cat(active, 1)

    @torch.no_grad()
    def revive(
        self,
        dead: Tensor,
        unit: Tensor,
        errors: Tensor,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Tensor:
        """Starts dead latents anew, as points that are badly explained; returns how many of each autoencoder.

        Args:
            dead: [latents of all] bool.
            unit: [b, d], the points that are chosen from, each with a chance as its error.
            errors: [b, autoencoders].
        """
        for number in self.owner[dead].unique().tolist():
            latents = (dead & (self.owner == number)).nonzero()[:, 0]
            chances = errors[:, number].clamp(min=1e-12)
            chosen = unit[torch.multinomial(chances, len(latents), generator=generator)]
            self.decoder[latents] = F.normalize(chosen - self.decoder_bias[number], dim=-1)
            self.weight[latents], self.bias[latents] = self.decoder[latents], 0.0
            for parameter in (self.weight, self.bias, self.decoder):
                for name in ("exp_avg", "exp_avg_sq"):  # Adam's memory of the latents that were
                    optimizer.state[parameter][name][latents] = 0.0
        return self.owner[dead].bincount(minlength=len(self.sizes))

    def apart(self, mean: Tensor) -> Iterator[Sae]:
        """The autoencoders one by one."""
        split = (tensor.detach().split(self.sizes) for tensor in (self.weight, self.bias, self.decoder))
        for weight, bias, decoder, own in zip(*split, self.decoder_bias.detach(), strict=True):
            encoder = SparseEncoder(mean, own.clone(), weight.clone(), bias.clone())
            yield Sae(encoder, decoder.T.contiguous(), self.k)


def _start(activations: Rows, mean: Tensor, recipe: SaeRecipe, seed: int) -> _Stack:
    """Directions far apart, the same for all sizes of one seed as far as each goes; encoders that read along them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(activations), generator=generator)
    unit = unit_rows(activations[order[:STARTED].sort().values], mean)
    centre = unit.mean(0)
    # One unlucky point costs a training: of three plain starts one missed a behavior of the embedded pair, and the
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
    """`count` rows of `points` [n, d] far apart, scaled to norm 1: no latent starts dead.

    As k-means++ starts, and of TRIED points that one is taken which leaves the others nearest to a row.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        if not distance.any():
            raise HybridError(
                f"activations must have at least {count} distinct rows, one a latent; found {len(chosen)}; "
                "give more traces, or ask for fewer latents"
            )
        candidates = torch.multinomial(distance, TRIED, replacement=True, generator=generator)
        left = torch.minimum(distance, torch.cdist(points[candidates], points).square())
        chosen.append(int(candidates[left.sum(-1).argmin()]))
        # Not from cdist, which multiplies matrices: of a row and its like the distance is to be 0.
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
    return F.normalize(points[chosen], dim=-1)


def _minibatches(activations: Rows, mean: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless x [b, d] in random order, each row once before any comes again, but for a rest smaller than `size`."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(activations))
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for some in order[: len(order) // size * size].split(size):
            yield unit_rows(activations[some.sort().values], mean)  # ascending, as a file is read
