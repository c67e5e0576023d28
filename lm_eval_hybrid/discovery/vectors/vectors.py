"""Bias, behavior vectors and coefficient network, fitted to the frozen base by one of two recipes.

- `likelihood` (paper, 2025): a vector makes the base write the thinking model's sentences. The loss is the
  cross-entropy of a sentence given what is before it, the vector added at each of its tokens.
- `disagreement` (paper, 2026): a vector, times the coefficient that a small network computes from the base's residual,
  makes the base say what the thinking model would have said where the two differ. The loss is the Kullback-Leibler
  divergence there from the thinking model's likeliest tokens to the base's distribution.

Both fit the bias first, on all that there is; then it is frozen, and one vector for each latent is fitted on top, all
in the same passes: each token's gradient goes to the vector of its own category.
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
from lm_eval_hybrid.discovery.traces.pair import TOP
from lm_eval_hybrid.discovery.vectors.descent import Descent, Losses, Point, Rules, Task
from lm_eval_hybrid.discovery.vectors.fitted import Fitted
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered import SteeredBase, Vectors, Wanted

_CLOSED = {"frozen": True, "config": pydantic.ConfigDict(extra="forbid")}
_ONE = math.log(math.e - 1)  # where softplus is 1, so that a network begins with coefficient 1
log = logging.getLogger(__name__)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(**_CLOSED)
class _Fitting:
    """What both recipes need.

    Attributes:
        layer: of the base model, after which the vectors are added.
        bias_epochs, epochs: passes over the data, at most, for the bias and for the vectors.
        rate: Adam's learning rate, for a residual stream of norm 1; it is scaled by the norm found.
        batch: traces in a step.
        patience: epochs without a better held-out loss after which a fit ends.
        seeds: fits, of which calibration chooses.
    """

    layer: Index
    bias_epochs: Index = 3
    epochs: Index = 12
    rate: Positive = 0.02
    batch: Count = 16
    patience: Count = 3
    seeds: Count = 1


@pydantic.dataclasses.dataclass(**_CLOSED)
class Likelihood(_Fitting):
    """See the module.

    Attributes:
        examples: sentences of each category that are learned from, at most. Of the twice as many that the latent
            answers to most strongly, those which the base finds least likely.
    """

    recipe: Literal["likelihood"] = "likelihood"
    examples: Count = 2048


@pydantic.dataclasses.dataclass(**_CLOSED)
class Disagreement(_Fitting):
    """See the module.

    Attributes:
        top: of the thinking model's tokens, how many the base is to follow.
        hidden: width of the network's trunk, which all categories share.
        network_rate: Adam's learning rate for it.
    """

    recipe: Literal["disagreement"] = "disagreement"
    seeds: Count = 3
    top: Annotated[int, Field(ge=1, le=TOP)] = 3
    hidden: Count = 64
    network_rate: Positive = 0.005


VectorRecipe: TypeAlias = Annotated[Likelihood | Disagreement, Field(discriminator="recipe")]


@dataclass(frozen=True)
class Material:
    """What vectors are fitted to and measured on.

    Attributes:
        base: with its rows of all traces.
        gates: of all traces.
        sentences: of all traces: number = its index here, category = its strongest latent.
        activation: [sentences], how strongly that latent answers.
        held_out: [traces] bool.
        latents: how many there are.
    """

    base: SteeredBase
    gates: Disagreements
    sentences: Sequence[Segment]
    activation: Tensor
    held_out: Tensor
    latents: int

    def gate_segments(self, held_out: bool) -> list[Segment]:
        """Each gate of one side as a segment; its number is its own among all gates."""
        gates = self.gates
        rows = zip(*(t.tolist() for t in (gates.trace, gates.column, gates.target, gates.category)), strict=True)
        return [
            Segment(trace, column, (target,), category, number)
            for number, (trace, column, target, category) in enumerate(rows)
            if bool(self.held_out[trace]) == held_out
        ]

    def sentence_segments(self, held_out: bool) -> list[Segment]:
        """Each sentence of one side that has base tokens: a token that does not cross has none."""
        return [s for s in self.sentences if s.targets and bool(self.held_out[s.row]) == held_out]


def fit(material: Material, recipe: Likelihood | Disagreement, seed: int, folder: Path) -> Fitted:
    """Fits by the recipe; the base's weights stay as they are. An interrupted fit goes on from `folder`.

    There must be gates, and sentences, on either side.
    """
    fitter = _likelihood if isinstance(recipe, Likelihood) else _disagreement
    fitted = fitter(material, recipe, seed, folder)
    for name, tensor in (("bias", fitted.bias), ("vectors", fitted.vectors)):
        if not tensor.any():
            log.warning("seed %d: no epoch of the %s was better than none at all; it stays zero", seed, name)
    return fitted


def _likelihood(material: Material, recipe: Likelihood, seed: int, folder: Path) -> Fitted:
    learned, held_out = (material.sentence_segments(side) for side in (False, True))
    bias, vectors = _zeros(material)
    rate = recipe.rate * _residual_norm(material)

    def descend(name: str, parameter: Tensor, segments: Sequence[Segment], way: Vectors, epochs: int) -> list[Point]:
        task = Task(name, {name: parameter}, {name: rate}, segments, held_out, _losses(material, way))
        return Descent(task, Rules(epochs, recipe.batch, recipe.patience, seed), folder).run()

    curves = {"bias": descend("bias", bias, learned, Vectors(bias), recipe.bias_epochs)}
    bias.requires_grad_(False)
    chosen = _examples(material, learned, recipe.examples)
    curves["vectors"] = descend("vectors", vectors, chosen, Vectors(bias, vectors), recipe.epochs)
    return Fitted(bias.detach().cpu(), vectors.detach().cpu(), None, curves)


def _disagreement(material: Material, recipe: Disagreement, seed: int, folder: Path) -> Fitted:
    learned, held_out = (material.gate_segments(side) for side in (False, True))
    bias, vectors = _zeros(material)
    norm = _residual_norm(material)
    network = _network(material, recipe.hidden, norm, seed)
    parameters = {"vectors": vectors, "trunk.weight": network.trunk_weight, "trunk.bias": network.trunk_bias}
    parameters |= {"heads.weight": network.heads_weight, "heads.bias": network.heads_bias}
    rates = {"vectors": recipe.rate * norm, "trunk.weight": recipe.network_rate / norm}
    rates |= dict.fromkeys(("trunk.bias", "heads.weight", "heads.bias"), recipe.network_rate)
    wanted = _wanted(material.gates, recipe.top)

    def descend(name: str, some: dict[str, Tensor], rates: dict[str, float], way: Vectors, epochs: int) -> list[Point]:
        task = Task(name, some, rates, learned, held_out, _losses(material, way, wanted))
        return Descent(task, Rules(epochs, recipe.batch, recipe.patience, seed), folder).run()

    curves = {"bias": descend("bias", {"bias": bias}, {"bias": recipe.rate * norm}, Vectors(bias), recipe.bias_epochs)}
    bias.requires_grad_(False)
    curves["vectors"] = descend("vectors", parameters, rates, Vectors(bias, vectors, network), recipe.epochs)
    found = CoefficientNetwork(*(tensor.detach().cpu() for tensor in network.tensors))
    return Fitted(bias.detach().cpu(), vectors.detach().cpu(), found, curves)


def _losses(material: Material, way: Vectors, wanted: Wanted | None = None) -> Losses:
    def losses(segments: Sequence[Segment]) -> Iterator[Tensor]:
        return (read.said[0].total for read in material.base.read(segments, [way], wanted))

    return losses


def _zeros(material: Material) -> tuple[Tensor, Tensor]:
    base = material.base
    sizes = ((base.width,), (material.latents, base.width))
    return tuple(torch.zeros(size, device=base.device, requires_grad=True) for size in sizes)


def _network(material: Material, hidden: int, norm: float, seed: int) -> CoefficientNetwork:
    """A network that begins with coefficient 1, its trunk fit for residuals of this norm."""
    trunk = torch.randn(hidden, material.base.width, generator=torch.Generator().manual_seed(seed)) / norm
    tensors = (trunk, torch.zeros(hidden), torch.zeros(material.latents, hidden), torch.full((material.latents,), _ONE))
    return CoefficientNetwork(*(tensor.to(material.base.device).requires_grad_() for tensor in tensors))


def _wanted(gates: Disagreements, top: int) -> Wanted:
    """The base tokens that the thinking model finds likeliest, [g, top], NONE where there are fewer, and their
    log-probabilities, which add up to 1.

    Several of its tokens may begin with the same base token, which then has all their probability.
    """
    found = gates.top
    same = (found[:, :, None] == found[:, None, :]) & (found != NONE)[:, None, :]
    # The first of each token's places has it all, the others nothing.
    first = same.any(-1) & ~same.tril(-1).any(-1)
    mass = gates.top_logprob[:, None, :].masked_fill(~same, -torch.inf).logsumexp(-1).masked_fill(~first, -torch.inf)
    mass, order = mass.sort(dim=-1, descending=True, stable=True)
    tokens = found.gather(1, order).masked_fill(mass == -torch.inf, NONE)[:, :top]
    logprobs = mass[:, :top].log_softmax(-1).masked_fill(tokens == NONE, 0.0)
    return Wanted(tokens, logprobs)


def _residual_norm(material: Material) -> float:
    """Mean norm of the unsteered residual at gates, of some traces."""
    return material.base.norm(material.gate_segments(held_out=False)[:1000])


@torch.no_grad()
def _examples(material: Material, learned: Sequence[Segment], most: int) -> list[Segment]:
    """Of each category the sentences to learn from; see `Likelihood.examples`."""
    unlikely = torch.zeros(len(material.sentences))
    by_category: dict[int, list[Segment]] = {}
    for segment in sorted(learned, key=lambda s: (-float(material.activation[s.number]), s.number)):
        by_category.setdefault(segment.category, []).append(segment)
    # Where there are not too many, all are taken.
    several = [segments[: 2 * most] for segments in by_category.values() if len(segments) > most]
    still = Vectors(torch.zeros(material.base.width, device=material.base.device))
    for read in material.base.read([segment for segments in several for segment in segments], [still]):
        unlikely.index_add_(0, read.number, read.said[0].loss.cpu())
    found: list[Segment] = []
    for segments in by_category.values():
        perplexity = {s.number: float(unlikely[s.number]) / len(s.targets) for s in segments[: 2 * most]}
        found += sorted(segments[: 2 * most], key=lambda s: (-perplexity[s.number], s.number))[:most]
    return sorted(found, key=lambda s: s.number)
