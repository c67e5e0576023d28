"""Fits bias, behavior vectors and coefficient network to the frozen base, by one of two recipes.

- `likelihood` (paper, 2025): vectors make the base write the thinking model's sentences. The loss is the cross-entropy
  of a sentence given its prefix, with the vector added at each of its tokens.
- `disagreement` (paper, 2026): vectors, scaled by a coefficient that a small network computes from the base's residual,
  make the base predict the thinking model's token where the two disagree. The loss is the Kullback-Leibler divergence
  from the thinking model's top tokens to the base's distribution.

Both first fit the bias on all training data and freeze it, and then fit one vector per latent on top, all in the same
batches: each token's gradient goes to the vector of its own category.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Count, Index
from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.activations.disagreements import NONE, Disagreements
from lm_eval_hybrid.discovery.activations.readers import TOP
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import SteeredModel, SteeringVectors, TargetDistribution
from lm_eval_hybrid.discovery.vectors.trainer import (
    EpochMetrics,
    FittedVectors,
    LossFunction,
    TrainConfig,
    TrainTask,
    VectorTrainer,
)

_CLOSED = pydantic.ConfigDict(extra="forbid")
_ONE = math.log(math.e - 1)  # softplus(_ONE) = 1, so that the network's coefficients begin at 1
log = logging.getLogger(__name__)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class _FitRecipe:
    """Settings of both recipes.

    Attributes:
        layer: the base model's layer whose output the vectors are added to.
        bias_epochs, epochs: maximum number of epochs for the bias and for the vectors.
        rate: learning rate for a residual stream of norm 1; it is scaled by the measured norm.
        batch: traces in a step.
        patience: epochs without a better held-out loss after which a fit stops.
        seeds: number of fits, of which calibration chooses one.
    """

    layer: Index
    bias_epochs: Index = 3
    epochs: Index = 12
    rate: Positive = 0.02
    batch: Count = 16
    patience: Count = 3
    seeds: Count = 1


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class LikelihoodRecipe(_FitRecipe):
    """See the module.

    Attributes:
        examples: maximum number of training sentences per category. They are those that the base finds least likely
            among the 2 * `examples` sentences with the strongest activation.
    """

    recipe: Literal["likelihood"] = "likelihood"
    examples: Count = 2048


@pydantic.dataclasses.dataclass(frozen=True, config=_CLOSED)
class DisagreementRecipe(_FitRecipe):
    """See the module.

    Attributes:
        top: number of the thinking model's top tokens to fit to.
        hidden: width of the network's trunk, which all categories share.
        network_rate: learning rate of the network.
    """

    recipe: Literal["disagreement"] = "disagreement"
    seeds: Count = 3
    top: Annotated[int, Field(ge=1, le=TOP)] = 3
    hidden: Count = 64
    network_rate: Positive = 0.005


VectorRecipe: TypeAlias = Annotated[LikelihoodRecipe | DisagreementRecipe, Field(discriminator="recipe")]


@dataclass(frozen=True)
class FitData:
    """The data of a fit, training and held-out, and the model to steer.

    Attributes:
        model: with the rows of all traces.
        gates: the disagreements of all traces.
        sentences: of all traces; `index` is a sentence's index here, `category` its strongest latent.
        activation: [sentences], of that latent.
        held_out: [traces] bool.
        latents: number of latents.
    """

    model: SteeredModel
    gates: Disagreements
    sentences: Sequence[Segment]
    activation: Tensor
    held_out: Tensor
    latents: int

    def gate_segments(self, held_out: bool) -> list[Segment]:
        """The held-out or the training disagreements as segments of one token, by their index among all."""
        gates = self.gates
        rows = zip(*(t.tolist() for t in (gates.trace, gates.column, gates.target, gates.category)), strict=True)
        return [
            Segment(trace, column, (target,), category, index)
            for index, (trace, column, target, category) in enumerate(rows)
            if bool(self.held_out[trace]) == held_out
        ]

    def sentence_segments(self, held_out: bool) -> list[Segment]:
        """The held-out or the training sentences, without those that have no tokens in the base's vocabulary."""
        return [s for s in self.sentences if s.targets and bool(self.held_out[s.row]) == held_out]


def fit(data: FitData, recipe: VectorRecipe, seed: int, folder: Path) -> FittedVectors:
    """Fit vectors by a recipe, resuming an interrupted fit from `folder`.

    There must be disagreements, and sentences, in both the training and the held-out data.
    """
    if isinstance(recipe, LikelihoodRecipe):
        fitted = _fit_likelihood(data, recipe, seed, folder)
    else:
        fitted = _fit_disagreement(data, recipe, seed, folder)
    for name, tensor in (("bias", fitted.bias), ("vectors", fitted.vectors)):
        if not tensor.any():
            log.warning("seed %d: no epoch lowered the held-out loss of the %s, which stays zero", seed, name)
    return fitted


def _fit_likelihood(data: FitData, recipe: LikelihoodRecipe, seed: int, folder: Path) -> FittedVectors:
    train, held_out = data.sentence_segments(held_out=False), data.sentence_segments(held_out=True)
    bias, vectors = _zero_vectors(data)
    rate = recipe.rate * _residual_norm(data)

    def run(
        name: str, parameter: Tensor, segments: Sequence[Segment], way: SteeringVectors, epochs: int
    ) -> list[EpochMetrics]:
        task = TrainTask(name, {name: parameter}, {name: rate}, segments, held_out, _loss(data, way))
        return VectorTrainer(task, TrainConfig(epochs, recipe.batch, recipe.patience, seed), folder).run()

    curves = {"bias": run("bias", bias, train, SteeringVectors(bias), recipe.bias_epochs)}
    bias.requires_grad_(False)
    examples = _training_examples(data, train, recipe.examples)
    curves["vectors"] = run("vectors", vectors, examples, SteeringVectors(bias, vectors), recipe.epochs)
    return FittedVectors(bias.detach().cpu(), vectors.detach().cpu(), None, curves)


def _fit_disagreement(data: FitData, recipe: DisagreementRecipe, seed: int, folder: Path) -> FittedVectors:
    train, held_out = data.gate_segments(held_out=False), data.gate_segments(held_out=True)
    bias, vectors = _zero_vectors(data)
    norm = _residual_norm(data)
    network = _initial_network(data, recipe.hidden, norm, seed)
    parameters = {"vectors": vectors, "trunk.weight": network.trunk_weight, "trunk.bias": network.trunk_bias}
    parameters |= {"heads.weight": network.heads_weight, "heads.bias": network.heads_bias}
    rates = {"vectors": recipe.rate * norm, "trunk.weight": recipe.network_rate / norm}
    rates |= dict.fromkeys(("trunk.bias", "heads.weight", "heads.bias"), recipe.network_rate)
    targets = _target_distribution(data.gates, recipe.top)

    def run(
        name: str, trained: dict[str, Tensor], rates: dict[str, float], way: SteeringVectors, epochs: int
    ) -> list[EpochMetrics]:
        task = TrainTask(name, trained, rates, train, held_out, _loss(data, way, targets))
        return VectorTrainer(task, TrainConfig(epochs, recipe.batch, recipe.patience, seed), folder).run()

    bias_rate = {"bias": recipe.rate * norm}
    curves = {"bias": run("bias", {"bias": bias}, bias_rate, SteeringVectors(bias), recipe.bias_epochs)}
    bias.requires_grad_(False)
    curves["vectors"] = run("vectors", parameters, rates, SteeringVectors(bias, vectors, network), recipe.epochs)
    trained = CoefficientNetwork(*(tensor.detach().cpu() for tensor in network.tensors))
    return FittedVectors(bias.detach().cpu(), vectors.detach().cpu(), trained, curves)


def _loss(data: FitData, way: SteeringVectors, targets: TargetDistribution | None = None) -> LossFunction:
    def loss(segments: Sequence[Segment]) -> Iterator[Tensor]:
        return (batch.outputs[0].loss for batch in data.model.forward(segments, [way], targets))

    return loss


def _zero_vectors(data: FitData) -> tuple[Tensor, Tensor]:
    """(bias [d], vectors [latents, d]), both trainable."""
    width, device = data.model.width, data.model.device
    bias = torch.zeros(width, device=device, requires_grad=True)
    return bias, torch.zeros(data.latents, width, device=device, requires_grad=True)


def _initial_network(data: FitData, hidden: int, norm: float, seed: int) -> CoefficientNetwork:
    """A network whose coefficients are 1, with a trunk scaled for residuals of this norm."""
    trunk = torch.randn(hidden, data.model.width, generator=torch.Generator().manual_seed(seed)) / norm
    tensors = (trunk, torch.zeros(hidden), torch.zeros(data.latents, hidden), torch.full((data.latents,), _ONE))
    return CoefficientNetwork(*(tensor.to(data.model.device).requires_grad_() for tensor in tensors))


def _target_distribution(gates: Disagreements, top: int) -> TargetDistribution:
    """The thinking model's `top` likeliest base tokens at each disagreement, their probabilities adding up to 1.

    Several of its tokens may begin with the same base token, which then gets the sum of their probabilities.
    """
    tokens = gates.top
    same = (tokens[:, :, None] == tokens[:, None, :]) & (tokens != NONE)[:, None, :]
    # The first of equal tokens gets all their probability, the others none.
    first = same.any(-1) & ~same.tril(-1).any(-1)
    mass = gates.top_logprob[:, None, :].masked_fill(~same, -torch.inf).logsumexp(-1).masked_fill(~first, -torch.inf)
    mass, order = mass.sort(dim=-1, descending=True, stable=True)
    tokens = tokens.gather(1, order).masked_fill(mass == -torch.inf, NONE)[:, :top]
    logprobs = mass[:, :top].log_softmax(-1).masked_fill(tokens == NONE, 0.0)
    return TargetDistribution(tokens, logprobs)


def _residual_norm(data: FitData) -> float:
    """Mean norm of the unsteered residual at the first 1000 training disagreements."""
    return data.model.residual_norm(data.gate_segments(held_out=False)[:1000])


@torch.no_grad()
def _training_examples(data: FitData, train: Sequence[Segment], most: int) -> list[Segment]:
    """The sentences to train each category on; see `LikelihoodRecipe.examples`."""
    losses = torch.zeros(len(data.sentences))
    by_category: dict[int, list[Segment]] = {}
    for segment in sorted(train, key=lambda s: (-float(data.activation[s.index]), s.index)):
        by_category.setdefault(segment.category, []).append(segment)
    # A category with fewer sentences than `most` takes all of them, so their losses are not needed.
    candidates = [segments[: 2 * most] for segments in by_category.values() if len(segments) > most]
    unsteered = SteeringVectors(torch.zeros(data.model.width, device=data.model.device))
    for batch in data.model.forward([segment for segments in candidates for segment in segments], [unsteered]):
        losses.index_add_(0, batch.index, batch.outputs[0].losses.cpu())
    examples: list[Segment] = []
    for segments in by_category.values():
        mean_loss = {s.index: float(losses[s.index]) / len(s.targets) for s in segments[: 2 * most]}
        examples += sorted(segments[: 2 * most], key=lambda s: (-mean_loss[s.index], s.index))[:most]
    return sorted(examples, key=lambda s: s.index)
