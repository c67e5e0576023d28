"""Where the gate opens, with what the base is steered there, and which candidate is taken (DESIGN, section 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lm_eval_hybrid.backends.protocol import Sequences
from lm_eval_hybrid.decoding.bridge import Bridge
from lm_eval_hybrid.decoding.draws import draw, pick
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, check_numbers

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
        logits: [n, vocab], the base model's, steered, in its own dtype.
        category: [n] int64, NONE where no behavior was used.
        coefficient: [n] float64, on the CPU: not every device has float64.
        window: [n] int64.
    """

    token: Tensor
    logits: Tensor
    category: Tensor
    coefficient: Tensor
    window: Tensor


class Chooser:
    """Applies one policy.

    Args:
        steering: None where the policy does not steer.
        bridge: None where it does not read the thinking model.
        device: of the base model.

    Attributes:
        reach: how far back the base's residuals are needed for it; see `protocol.Backend.open`.
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
        self._windows = [w for _, w in pairs]
        self._window_ids = torch.tensor(self._windows, device=device)
        self.reach = (0 if 0 in policy.windows else max(policy.windows)) if policy.steers else None
        # Ties go to the smaller |a|, then the smaller window (all positions: the largest), then the first listed.
        preferred = sorted(range(len(pairs)), key=lambda i: (abs(pairs[i][0]), pairs[i][1] or math.inf, i))
        self._preferred = torch.tensor(preferred, device=device)

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
        rows = torch.tensor([place.row for place in places], device=self._device)
        steps = torch.tensor([place.step for place in places], device=self._device)
        category = self._category(thinking, rows, steps, places)
        direction = self._bias.expand(len(places), -1)
        if self._policy.category != "none":
            direction = direction + self._vectors[category]
        if self._network is None:
            coefficients = self._coefficients.expand(len(places), -1)
            multiples = coefficients.float().to(self._device)
        else:
            multiples = self._network.coefficient(base_view.residual[rows, steps], category)[:, None]
            coefficients = multiples.cpu().double()
        steering = multiples[:, :, None] * direction[:, None]
        columns = [place.column for place in places]
        logits = base.steered([place.row for place in places], columns, steering, self._windows)
        tokens = (logits if self._bridge is None else self._bridge.base_logits(logits)).argmax(-1)
        check_numbers(logits.gather(-1, tokens[..., None]), "steered base")
        taken = self._select(tokens, thinking, rows, steps, places)
        each = torch.arange(len(places), device=self._device)
        return Candidates(
            token=tokens[each, taken],
            logits=logits[each, taken],
            category=category,
            coefficient=coefficients.gather(1, taken[:, None].cpu())[:, 0],
            window=self._window_ids[taken],
        )

    def _category(self, view: ThinkingView | None, rows: Tensor, steps: Tensor, places: Sequence[Place]) -> Tensor:
        """[n] int64: the behavior at every place."""
        policy = self._policy
        if policy.category == "sae":
            residual = present(view).residual
            self._encoder = self._encoder.to(residual.device)
            there = residual[rows.to(residual.device), steps.to(residual.device)]
            return self._encoder.category(there).to(self._device)
        if policy.category == "random":
            latents = len(self._vectors)
            chosen = [pick(latents, policy.seed, "category", place.position, place.key) for place in places]
            return torch.tensor(chosen, device=self._device)
        return torch.full((len(places),), NONE, device=self._device)

    def _select(
        self, tokens: Tensor, view: ThinkingView | None, rows: Tensor, steps: Tensor, places: Sequence[Place]
    ) -> Tensor:
        """tokens [n, C] -> [n] int64: index of the candidate taken."""
        policy = self._policy
        if policy.select == "guardrail":
            likely = present(view).logprobs(rows, steps, tokens[:, self._preferred]).to(self._device)
            return self._preferred[likely.argmax(1)]  # argmax takes the first of equals
        if policy.select == "random":
            chosen = [pick(tokens.shape[1], policy.seed, "select", place.position, place.key) for place in places]
            return torch.tensor(chosen, device=self._device)
        return torch.zeros(len(tokens), dtype=torch.int64, device=self._device)


def present(value: T | None) -> T:
    """`value`, which the policy makes sure of.

    Raises:
        ValueError: it is not there.
    """
    if value is None:
        raise ValueError("the policy reads a model or a tensor that was not given")
    return value
