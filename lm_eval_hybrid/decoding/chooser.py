"""Where a token is decided (docs/architecture.md, "What a result means"). At each position, in this order:

1. `Gate`: does the base model's own token stand? Where the gate stays shut, it is emitted, and nothing else happens.
2. Category, in `Steerer.candidates`: which behavior's vector joins the bias.
3. Candidates, in `Steerer.evaluate`: the base model's steered logits for every coefficient and window.
4. Selection, in `Steerer.select`: which candidate's token is emitted.

Where the policy emits the thinking model's own token there is no `Steerer`, and steps 2 to 4 are `views.own_tokens`.

To add a gate: write a class below `Disagreement`, make it in `gate_for`, name it in `bundles.manifest.Gate`, and say in
`Policy.reads_thinking` whether it reads the thinking model. A server evaluates gates itself (`portable.programs.read`):
one that is neither `Scheduled` nor compares choices needs a case there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Emission
from lm_eval_hybrid.decoding.request import Draft
from lm_eval_hybrid.decoding.sampling import sample, uniform, uniform_index
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.tokens.bridge import Choices
from lm_eval_hybrid.decoding.views import GatePosition, Views, check_not_nan
from lm_eval_hybrid.models.protocol import Sequences

NO_CATEGORY = -1
"""Stands for "no category" in integer tensors."""


class Gate(ABC):
    """Decides at which positions a token other than the base model's own is emitted."""

    def scheduled(self, position: int, key: bytes) -> bool | None:
        """Whether it opens at a position, if that is known before any model is read; else None."""
        return None

    @abstractmethod
    def opens(self, views: Views, drafts: Sequence[Draft]) -> list[list[bool]]:
        """Whether it opens, for each of the first `Draft.length` tokens of every draft."""


class Scheduled(Gate):
    """Opens at a random share `rate` of positions, independent of the models; 0: nowhere, 1: everywhere."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._seed = seed

    def scheduled(self, position: int, key: bytes) -> bool:
        if self._rate in (0, 1):
            return self._rate == 1
        return uniform(self._seed, "gate", position, key) < self._rate

    def opens(self, views: Views, drafts: Sequence[Draft]) -> list[list[bool]]:
        rows = [(draft.row.position, draft.row.key, draft.length) for draft in drafts]
        return [[self.scheduled(position + step, key) for step in range(length)] for position, key, length in rows]


class Disagreement(Gate):
    """Opens where the two models' likeliest tokens differ."""

    def opens(self, views: Views, drafts: Sequence[Draft]) -> list[list[bool]]:
        differ = ~views.thinking.agrees(views.base.choice)
        return [row[: draft.length] for row, draft in zip(differ.tolist(), drafts, strict=True)]


def gate_for(policy: Policy) -> Gate:
    """The gate that the policy names."""
    if policy.gate == "disagreement":
        return Disagreement()
    rates = {"never": 0.0, "always": 1.0, "random": policy.gate_rate or 0.0}
    return Scheduled(rates[policy.gate], policy.seed)


class RequiredInputs(NamedTuple):
    """What a decision reads at the positions where the gate opens, apart from choices."""

    base_residual: bool = False
    thinking_residual: bool = False


@dataclass(frozen=True)
class SteeringCandidates:
    """Candidates to evaluate at n gate positions.

    Attributes:
        category: [n] int64, NO_CATEGORY where no behavior is used.
        direction: [n, d] float32, which the coefficients multiply.
        coefficients: [n, C] float64, on the CPU: not every device has float64.
        selected: the candidate to select at each position; None where the thinking model decides.
    """

    category: Tensor
    direction: Tensor
    coefficients: Tensor
    selected: list[int] | None

    def at(self, indices: Sequence[int], selected: list[int] | None = None) -> "SteeringCandidates":
        """The candidates at some of the positions, with what is selected there."""
        some = list(indices)
        return SteeringCandidates(self.category[some], self.direction[some], self.coefficients[some], selected)


class Steerer:
    """Makes, evaluates and selects the steered candidates of one policy.

    Args:
        choices: the base model's tokens that may be chosen.
        device: of the base model.

    Attributes:
        windows: of the candidates, in their order.
        reach: the longest window; see `protocol.Backend.open`.
        preferred: the candidates in the order that decides ties.

    Raises:
        HybridError: the policy needs a coefficient network, and there is none.
    """

    def __init__(self, policy: Policy, steering: Steering, choices: Choices, device: torch.device) -> None:
        self._policy = policy
        self._choices = choices
        self._device = device
        bias, vectors = steering.directions(policy.directions, policy.seed)
        self._bias, self._vectors = bias.to(device), vectors.to(device)
        self._encoder = steering.encoder
        self._network = steering.require_network().to(device) if policy.uses_network else None
        coefficients = policy.coefficients
        if policy.select == "mlp":  # the network's, not yet known; the bias was fitted with coefficient 1
            coefficients = (math.nan,) if policy.uses_network else (1.0,)
        pairs = [(a, w) for a in coefficients for w in policy.windows]
        self._coefficients = torch.tensor([a for a, _ in pairs], dtype=torch.float64)
        self.windows = [w for _, w in pairs]
        self.reach = 0 if 0 in policy.windows else max(policy.windows)
        # Ties go to the smaller |a|, then the smaller window (all positions: the largest), then the first listed.
        self.preferred = sorted(range(len(pairs)), key=lambda i: (abs(pairs[i][0]), pairs[i][1] or math.inf, i))

    @property
    def required(self) -> RequiredInputs:
        """What it reads at the positions where the gate opens."""
        return RequiredInputs(self._network is not None, self._policy.category == "sae")

    def steer(
        self, sequences: Sequences, views: Views, positions: Sequence[GatePosition]
    ) -> tuple[list[Emission], Tensor]:
        """Decide the token at one or more positions.

        Returns:
            What is emitted at each, and the selected candidates' logits [n, vocab], in the model's own dtype.
        """
        candidates = self.candidates(views, positions)
        logits = self.evaluate(sequences, candidates, positions)
        allowed = self._choices.masked(logits)
        tokens = allowed.argmax(-1)
        check_not_nan(logits.gather(-1, tokens[..., None]), "steered base")
        selected = self.select(candidates, tokens, views, positions)
        index = torch.arange(len(positions), device=logits.device), torch.tensor(selected, device=logits.device)
        emitted, draws = tokens[index].tolist(), [position.draw for position in positions]
        if any(draws):
            emitted = sample(emitted, allowed[index], draws)
        return self.emissions(candidates, selected, emitted), logits[index]

    def candidates(self, views: Views, positions: Sequence[GatePosition]) -> SteeringCandidates:
        """The category at each position, and the candidates that follow from it."""
        policy = self._policy
        category = self._category(views, positions)
        direction = self._bias.expand(len(positions), -1)
        if policy.category != "none":
            direction = direction + self._vectors[category]
        if self._network is None:
            coefficients = self._coefficients.expand(len(positions), -1)
        else:
            residual = views.base.residuals(positions)
            coefficients = self._network.coefficient(residual, category)[:, None].cpu().double()
        selected = None
        if policy.select == "random":
            selected = self._random_index(len(self.windows), "select", positions)
        elif policy.select != "guardrail":
            selected = [0] * len(positions)
        return SteeringCandidates(category, direction, coefficients, selected)

    def _category(self, views: Views, positions: Sequence[GatePosition]) -> Tensor:
        """[n] int64: the behavior's latent at each position."""
        if self._policy.category == "sae":
            residual = views.thinking.residuals(positions)
            self._encoder = self._encoder.to(residual.device)
            return self._encoder.category(residual).to(self._device)
        if self._policy.category == "random":
            return torch.tensor(self._random_index(len(self._vectors), "category", positions), device=self._device)
        return torch.full((len(positions),), NO_CATEGORY, device=self._device)

    def evaluate(
        self, sequences: Sequences, candidates: SteeringCandidates, positions: Sequence[GatePosition]
    ) -> Tensor:
        """[n, C, vocab]: the base model's logits under every candidate."""
        coefficients = candidates.coefficients.float().to(self._device)
        steering = coefficients[:, :, None] * candidates.direction[:, None]
        rows, columns = [position.row for position in positions], [position.column for position in positions]
        return sequences.steered(rows, columns, steering, self.windows)

    def select(
        self, candidates: SteeringCandidates, tokens: Tensor, views: Views, positions: Sequence[GatePosition]
    ) -> list[int]:
        """The index of the selected candidate at each position; tokens [n, C] are the candidates' likeliest."""
        if candidates.selected is not None:
            return candidates.selected
        return [self.preferred[i] for i in views.thinking.likeliest(positions, tokens[:, self.preferred]).tolist()]

    def emissions(
        self, candidates: SteeringCandidates, selected: Sequence[int], tokens: Sequence[int]
    ) -> list[Emission]:
        """What is emitted: the tokens, with the settings of the candidates that they come from."""
        return [
            Emission(token, None if category == NO_CATEGORY else category, coefficients[i], self.windows[i])
            for token, category, coefficients, i in zip(
                tokens, candidates.category.tolist(), candidates.coefficients.tolist(), selected, strict=True
            )
        ]

    def _random_index(self, n: int, stream: str, positions: Sequence[GatePosition]) -> list[int]:
        return [uniform_index(n, self._policy.seed, stream, place.position, place.key) for place in positions]
