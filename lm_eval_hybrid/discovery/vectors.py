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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import pydantic
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.behaviors.manifest import Count, Index
from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.descent import Descent, Rules, Task
from lm_eval_hybrid.discovery.fitted import Fitted
from lm_eval_hybrid.discovery.gates import NONE, Gates
from lm_eval_hybrid.discovery.pair import TOP
from lm_eval_hybrid.discovery.pasts import Pasts
from lm_eval_hybrid.discovery.segments import Pack, Segment, pack, steered_logits

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
        pasts: the base's rows of all traces.
        gates: of all traces.
        sentences: of all traces: number = its index here, category = its strongest latent.
        activation: [sentences], how strongly that latent answers.
        held_out: [traces] bool.
        latents: how many there are.
    """

    pasts: Pasts
    gates: Gates
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


def steer(
    packed: Pack, bias: Tensor, vectors: Tensor | None = None, network: CoefficientNetwork | None = None
) -> Tensor:
    """What is added at each token, [m, T, d]: the bias [d], with its category's vector of [latents, d] where there are
    some, times the network's coefficient where there is one."""
    if vectors is None:
        return bias.expand(*packed.target.shape, -1)
    # Not vectors[category]: with several threads an index's gradient is added up in any order, and this one's is not.
    direction = bias + F.embedding(packed.category, vectors)
    if network is None:
        return direction
    return network.coefficient(packed.residual().float(), packed.category)[..., None] * direction


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

    def cross_entropy(logits: Tensor, packed: Pack) -> Tensor:
        return F.cross_entropy(logits, packed.target[packed.real], reduction="none")

    def descend(name: str, parameter: Tensor, segments: Sequence[Segment], steering: Callable, epochs: int) -> list:
        task = Task(name, {name: parameter}, {name: rate}, segments, held_out, steering, cross_entropy)
        rules = Rules(epochs, recipe.batch, recipe.patience, seed)
        return Descent(material.pasts, task, rules, folder).run()

    curves = {"bias": descend("bias", bias, learned, lambda packed: steer(packed, bias), recipe.bias_epochs)}
    bias.requires_grad_(False)
    chosen = _examples(material, learned, recipe.examples)
    curves["vectors"] = descend("vectors", vectors, chosen, lambda packed: steer(packed, bias, vectors), recipe.epochs)
    return Fitted(bias.detach().cpu(), vectors.detach().cpu(), None, curves)


def _disagreement(material: Material, recipe: Disagreement, seed: int, folder: Path) -> Fitted:
    learned, held_out = (material.gate_segments(side) for side in (False, True))
    bias, vectors = _zeros(material)
    norm = _residual_norm(material)
    network = _network(material, recipe.hidden, norm, seed)
    rates = {"vectors": recipe.rate * norm, "trunk.weight": recipe.network_rate / norm}
    rates |= dict.fromkeys(("trunk.bias", "heads.weight", "heads.bias"), recipe.network_rate)
    wanted = _wanted(material.gates, recipe.top, material.pasts.base.device)

    def divergence(logits: Tensor, packed: Pack) -> Tensor:
        tokens, logprobs = (tensor[packed.number[packed.real]] for tensor in wanted)
        ours = logits.log_softmax(-1).gather(1, tokens.clamp(min=0))
        return (logprobs.exp() * (logprobs - ours)).masked_fill(tokens == NONE, 0.0).sum(-1)

    rules = Rules(recipe.bias_epochs, recipe.batch, recipe.patience, seed)
    constant = Task(
        "bias",
        {"bias": bias},
        {"bias": recipe.rate * norm},
        learned,
        held_out,
        lambda packed: steer(packed, bias),
        divergence,
    )
    curves = {"bias": Descent(material.pasts, constant, rules, folder).run()}
    bias.requires_grad_(False)
    parameters = {"vectors": vectors, "trunk.weight": network.trunk_weight, "trunk.bias": network.trunk_bias}
    parameters |= {"heads.weight": network.heads_weight, "heads.bias": network.heads_bias}
    joint = Task(
        "vectors",
        parameters,
        rates,
        learned,
        held_out,
        lambda packed: steer(packed, bias, vectors, network),
        divergence,
    )
    curves["vectors"] = Descent(material.pasts, joint, replace(rules, epochs=recipe.epochs), folder).run()
    found = CoefficientNetwork(*(tensor.detach().cpu() for tensor in list(parameters.values())[1:]))
    return Fitted(bias.detach().cpu(), vectors.detach().cpu(), found, curves)


def _zeros(material: Material) -> tuple[Tensor, Tensor]:
    base = material.pasts.base
    width = base.config.get_text_config().hidden_size
    return tuple(
        torch.zeros(size, device=base.device, requires_grad=True) for size in ((width,), (material.latents, width))
    )


def _network(material: Material, hidden: int, norm: float, seed: int) -> CoefficientNetwork:
    """A network that begins with coefficient 1, its trunk fit for residuals of this norm."""
    device = material.pasts.base.device
    width = material.pasts.base.config.get_text_config().hidden_size
    trunk = torch.randn(hidden, width, generator=torch.Generator().manual_seed(seed)) / norm
    tensors = (trunk, torch.zeros(hidden), torch.zeros(material.latents, hidden), torch.full((material.latents,), _ONE))
    return CoefficientNetwork(*(tensor.to(device).requires_grad_() for tensor in tensors))


def _wanted(gates: Gates, top: int, device: torch.device) -> tuple[Tensor, Tensor]:
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
    return tokens.to(device), logprobs.to(device)


@torch.no_grad()
def _residual_norm(material: Material) -> float:
    """Mean norm of the unsteered residual at gates, of some traces."""
    some = material.gate_segments(held_out=False)[:1000]
    total = sum(
        packed.residual()[packed.real].float().norm(dim=-1).sum().item() for packed in pack(material.pasts, some)
    )
    return total / len(some)


@torch.no_grad()
def _examples(material: Material, learned: Sequence[Segment], most: int) -> list[Segment]:
    """Of each category the sentences to learn from; see `Likelihood.examples`."""
    unlikely = torch.zeros(len(material.sentences))
    by_category: dict[int, list[Segment]] = {}
    for segment in sorted(learned, key=lambda s: (-float(material.activation[s.number]), s.number)):
        by_category.setdefault(segment.category, []).append(segment)
    # Where there are not too many, all are taken.
    several = [segments[: 2 * most] for segments in by_category.values() if len(segments) > most]
    for packed in pack(material.pasts, [segment for segments in several for segment in segments]):
        still = torch.zeros_like(packed.residual())
        logits = steered_logits(material.pasts, packed, still)[packed.real]
        loss = F.cross_entropy(logits, packed.target[packed.real], reduction="none").cpu()
        unlikely.index_add_(0, packed.number[packed.real].cpu(), loss)
    found: list[Segment] = []
    for segments in by_category.values():
        perplexity = {s.number: float(unlikely[s.number]) / len(s.targets) for s in segments[: 2 * most]}
        found += sorted(segments[: 2 * most], key=lambda s: (-perplexity[s.number], s.number))[:most]
    return sorted(found, key=lambda s: s.number)
