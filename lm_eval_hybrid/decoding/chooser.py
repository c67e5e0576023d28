"""Where the gate opens, with what the base is steered there, and which candidate is taken (DESIGN, section 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.draws import draw, pick
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, check_numbers
from lm_eval_hybrid.models.protocol import Sequences

T = TypeVar("T")

NONE = -1
"""Stands for "no id" in integer tensors."""


@dataclass(frozen=True)
class Place:
    """One position at which the gate opened.

    Attributes:
        row, step: where it is in the views: after token `step` of row `row`.
        column: position of that token in the base's row, prompt included.
        position: index of the token to be generated there.
        key: `draws.context_digest` of the row's prompt.
    """

    row: int
    step: int
    column: int
    position: int
    key: bytes


@dataclass(frozen=True)
class Candidates:
    """What the gate's opening led to at each of n places: the candidate taken.

    Attributes:
        token: [n] int64, base id.
        logits: [n, vocab], the base model's, steered, in its own dtype; None where they are at a server.
        category: [n] int64, NONE where no behavior was used.
        coefficient: [n] float64, on the CPU: not every device has float64.
        window: [n] int64.
    """

    token: Tensor
    logits: Tensor | None
    category: Tensor
    coefficient: Tensor
    window: Tensor


@dataclass(frozen=True)
class Trial:
    """What is tried at each of n places.

    Attributes:
        category: as of `Candidates`.
        direction: [n, d] float32, what the coefficients multiply.
        coefficients: [n, C] float64, on the CPU.
        taken: [n] int64, on the CPU: the candidate taken; None where the thinking model decides.
    """

    category: Tensor
    direction: Tensor
    coefficients: Tensor
    taken: Tensor | None

    def at(self, places: list[int]) -> "Trial":
        """What is tried at some of the places."""
        taken = None if self.taken is None else self.taken[places]
        return Trial(self.category[places], self.direction[places], self.coefficients[places], taken)


class Asked(NamedTuple):
    """Whether the SAE is asked for a category, and the network for a coefficient."""

    category: bool
    network: bool


class Chooser:
    """Applies one policy.

    Args:
        steering: None where the policy does not steer.
        bridge: None where it does not read the thinking model.
        device: of the base model.

    Attributes:
        reach: how far back the base's residuals are needed for it; see `protocol.Backend.open`.
        windows: of the candidates, in their order.
        preferred: [C] int64, the candidates in the order that ties are decided in.
    """

    def __init__(self, policy: Policy, steering: Steering | None, bridge: Bridge | None, device: torch.device) -> None:
        self._policy = policy
        self._bridge = bridge
        self._device = device
        if policy.steers:
            steering = present(steering)
            bias, vectors = steering.directions(policy.directions, policy.seed)
            self._bias, self._vectors = bias.to(device), vectors.to(device)
            self._encoder = steering.encoder
            self._network = steering.require_network().to(device) if policy.asks_network else None
        coefficients = policy.coefficients
        if policy.select == "mlp":  # the network's, not yet known; the bias was fitted with coefficient 1
            coefficients = (math.nan,) if policy.asks_network else (1.0,)
        pairs = [(a, w) for a in coefficients for w in policy.windows]
        self._coefficients = torch.tensor([a for a, _ in pairs], dtype=torch.float64)
        self.windows = [w for _, w in pairs]
        self._window_ids = torch.tensor(self.windows, device=device)
        self.reach = (0 if 0 in policy.windows else max(policy.windows)) if policy.steers else None
        # Ties go to the smaller |a|, then the smaller window (all positions: the largest), then the first listed.
        preferred = sorted(range(len(pairs)), key=lambda i: (abs(pairs[i][0]), pairs[i][1] or math.inf, i))
        self.preferred = torch.tensor(preferred, device=device)

    @property
    def asks(self) -> Asked:
        """What it wants to know where the gate opens."""
        policy = self._policy
        return Asked(
            category=policy.steers and policy.category == "sae",
            network=policy.asks_network,
        )

    @property
    def emits_thinking(self) -> bool:
        """Whether the thinking model's own token is emitted where the gate opens."""
        return self._policy.emit == "thinking"

    def opens_unseen(self, position: int, key: bytes) -> bool | None:
        """Whether the gate opens at a position, whatever the models say; None where they decide."""
        policy = self._policy
        if policy.gate == "random":
            return draw(policy.seed, "gate", position, key) < (policy.gate_rate or 0.0)
        return None if policy.gate == "disagreement" else policy.gate == "always"

    def differ(self, base: BaseView, thinking: ThinkingView) -> Tensor:
        """[rows, k] bool: where the two models' choices differ."""
        choice = thinking.choice.to(base.choice.device)
        return ~present(self._bridge).agree(base.choice, choice)

    def steer(
        self, base: Sequences, base_view: BaseView, thinking: ThinkingView | None, places: Sequence[Place]
    ) -> Candidates:
        """Try all candidates at some places (one or more), and take one at each."""
        trial = self.trial(base_view, thinking, places)
        steering = trial.coefficients.float().to(self._device)[:, :, None] * trial.direction[:, None]
        columns = [place.column for place in places]
        logits = base.steered([place.row for place in places], columns, steering, self.windows)
        tokens = (logits if self._bridge is None else self._bridge.base_logits(logits)).argmax(-1)
        check_numbers(logits.gather(-1, tokens[..., None]), "steered base")
        taken = trial.taken
        if taken is None:
            taken = self.likeliest(thinking, places, tokens)
        each = torch.arange(len(places), device=self._device)
        return self.candidates(trial, tokens, taken.to(self._device), logits[each, taken.to(self._device)])

    def trial(self, base_view: BaseView, thinking: ThinkingView | None, places: Sequence[Place]) -> Trial:
        """What is tried at some places."""
        rows, steps = self._at(places)
        category = self._category(thinking, rows, steps, places)
        direction = self._bias.expand(len(places), -1)
        if self._policy.category != "none":
            direction = direction + self._vectors[category]
        if self._network is None:
            coefficients = self._coefficients.expand(len(places), -1)
        else:
            residual = present(base_view.residual)[rows, steps]
            coefficients = self._network.coefficient(residual, category)[:, None].cpu().double()
        taken = None
        if self._policy.select == "random":
            count = len(self.windows)
            chosen = [pick(count, self._policy.seed, "select", place.position, place.key) for place in places]
            taken = torch.tensor(chosen)
        elif self._policy.select != "guardrail":
            taken = torch.zeros(len(places), dtype=torch.int64)
        return Trial(category, direction, coefficients, taken)

    def as_sent(
        self, trial: Trial, thinking: ThinkingView | None, places: Sequence[Place], taken: Tensor | None
    ) -> dict[str, Any]:
        """A trial as a server is asked for it (`backends.ndif.programs.draft`); taken: where that is known."""
        judged = taken is None
        return {
            "direction": trial.direction.cpu(),
            "coefficients": trial.coefficients.float(),
            "windows": self.windows,
            "preferred": self.preferred.tolist(),
            "taken": None if taken is None else taken.tolist(),
            "judges": [tuple(present(thinking).judge(place.row, place.step)) for place in places] if judged else None,
        }

    def likeliest(self, thinking: ThinkingView | None, places: Sequence[Place], tokens: Tensor) -> Tensor:
        """The guardrail's choice among candidates' tokens [n, C]: [n] int64."""
        rows, steps = self._at(places)
        return self.preferred[present(thinking).likeliest(rows, steps, tokens[:, self.preferred]).to(self._device)]

    def candidates(self, trial: Trial, tokens: Tensor, taken: Tensor, logits: Tensor | None) -> Candidates:
        """What came of a trial: tokens [n, C] of all candidates, taken [n], logits of those as of `Candidates`."""
        each = torch.arange(len(tokens), device=tokens.device)
        return Candidates(
            token=tokens[each, taken],
            logits=logits,
            category=trial.category,
            coefficient=trial.coefficients.gather(1, taken[:, None].cpu())[:, 0],
            window=self._window_ids[taken],
        )

    def _at(self, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([place.row for place in places], device=self._device)
        return rows, torch.tensor([place.step for place in places], device=self._device)

    def _category(self, view: ThinkingView | None, rows: Tensor, steps: Tensor, places: Sequence[Place]) -> Tensor:
        """[n] int64: the behavior at every place."""
        policy = self._policy
        if policy.category == "sae":
            residual = present(view).residuals(rows, steps)
            self._encoder = self._encoder.to(residual.device)
            return self._encoder.category(residual).to(self._device)
        if policy.category == "random":
            latents = len(self._vectors)
            chosen = [pick(latents, policy.seed, "category", place.position, place.key) for place in places]
            return torch.tensor(chosen, device=self._device)
        return torch.full((len(places),), NONE, device=self._device)


def present(value: T | None) -> T:
    """`value`, which the policy makes sure of.

    Raises:
        ValueError: it is not there.
    """
    if value is None:
        raise ValueError("the policy reads a model or a tensor that was not given")
    return value
