"""One step of hybrid decoding: from what the models say to the token, and why (DESIGN, section 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lm_eval_hybrid.backends.protocol import Sequences
from lm_eval_hybrid.decoding.bridge import Bridge
from lm_eval_hybrid.decoding.draws import draw, pick
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import Steering

T = TypeVar("T")

NONE = -1
"""Stands for "no id" in integer tensors."""


@dataclass(frozen=True)
class Candidate:
    """What the gate's opening led to, for the n rows where it opened and a steered candidate was taken.

    Attributes:
        token: [n] int64, base id.
        logits: [n, vocab] float32, the base model's, steered.
        category: [n] int64, NONE where no behavior was used.
        coefficient: [n] float64, on the CPU: not every device has float64.
        window: [n] int64.
    """

    token: Tensor
    logits: Tensor
    category: Tensor
    coefficient: Tensor
    window: Tensor


class Fact(NamedTuple):
    """The decision at one position of one row: the fields of `TokenRecord` that do not depend on text."""

    token: int
    steered: bool
    changed: bool
    category: int | None
    coefficient: float | None
    window: int | None
    thinking_logprob: float | None
    base_choice: int | None
    thinking_choice: int | None


@dataclass(frozen=True)
class Choice:
    """The decision at one position of every row. Ids are the base's.

    Attributes:
        token: [rows] int64, to be emitted.
        opened: [n] int64, indices of the rows where the gate opened, ascending.
        base: [rows] int64, the unsteered base's choice; None where it is not run.
        thinking: [rows] int64, the thinking model's choice; None where it is not run.
        thinking_logprob: [rows] float32, of `token` under the thinking model; None where it is not run.
        candidate: of the opened rows; None where none opened, or the policy emits the thinking model's token.
    """

    token: Tensor
    opened: Tensor
    base: Tensor | None
    thinking: Tensor | None
    thinking_logprob: Tensor | None
    candidate: Candidate | None

    def facts(self) -> list[Fact]:
        """One a row. Each tensor crosses from its device once, whole."""
        rows = len(self.token)
        tokens = self.token.tolist()
        base = [None] * rows if self.base is None else self.base.tolist()
        thinking = [None] * rows if self.thinking is None else self.thinking.tolist()
        logprobs = [None] * rows if self.thinking_logprob is None else self.thinking_logprob.tolist()
        opened = self.opened.tolist()
        steered = dict.fromkeys(opened, (None, None, None))
        if self.candidate is not None:
            columns = (self.candidate.category, self.candidate.coefficient, self.candidate.window)
            for row, category, coefficient, window in zip(opened, *(c.tolist() for c in columns), strict=True):
                steered[row] = (None if category == NONE else category, coefficient, window)
        return [
            Fact(
                tokens[row],
                row in steered,
                row in steered and base[row] is not None and base[row] != tokens[row],
                *steered.get(row, (None, None, None)),
                logprobs[row],
                base[row],
                thinking[row],
            )
            for row in range(rows)
        ]


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
            steering = _present(steering)
            bias, vectors = steering.directions(policy.directions, policy.seed)
            self._bias, self._vectors = bias.to(device), vectors.to(device)
            self._encoder = steering.encoder
            self._network = steering.require_network().to(device) if policy.select == "mlp" else None
        coefficients = (math.nan,) if policy.select == "mlp" else policy.coefficients
        pairs = [(a, w) for a in coefficients for w in policy.windows]
        self._coefficients = torch.tensor([a for a, _ in pairs], dtype=torch.float64)
        self._windows = [w for _, w in pairs]
        self._window_ids = torch.tensor(self._windows, device=device)
        self.reach = (0 if 0 in policy.windows else max(policy.windows)) if policy.steers else None
        # Ties go to the smaller |a|, then the smaller window (all positions: the largest), then the first listed.
        preferred = sorted(range(len(pairs)), key=lambda i: (abs(pairs[i][0]), pairs[i][1] or math.inf, i))
        self._preferred = torch.tensor(preferred, device=device)

    def choose(
        self, base: Sequences | None, thinking: Sequences | None, keys: Sequence[bytes], position: int
    ) -> Choice:
        """Decide the next token of every row.

        Args:
            base, thinking: None for a model that the policy does not read.
            keys: `draws.context_digest` of each row's prompt.
            position: index of the token to be generated, the same for all rows.
        """
        y_base = y_thinking = logprobs = candidate = None
        if base is not None:
            y_base = self._base_choice(base.reading.logits)
        if thinking is not None:
            logits, bridge = thinking.reading.logits, _present(self._bridge)
            y_thinking = bridge.to_base(bridge.thinking_choice(logits)).to(self._device)
            logprobs = logits.log_softmax(-1)
        opened = self._gate(y_base, y_thinking, keys, position).nonzero()[:, 0]
        if y_base is None:  # the thinking model alone
            token = _present(y_thinking)
        elif not len(opened):
            token = y_base
        elif self._policy.emit == "thinking":
            token = y_base.index_copy(0, opened, _present(y_thinking)[opened])
        else:
            candidate = self._steer(_present(base), thinking, logprobs, opened, keys, position)
            token = y_base.index_copy(0, opened, candidate.token)
        logprob = None if logprobs is None else self._crossed(logprobs, token[:, None])[:, 0]
        return Choice(token, opened, y_base, y_thinking, logprob, candidate)

    def logprobs(self, choice: Choice, base: Sequences | None, thinking: Sequences | None, tokens: Tensor) -> Tensor:
        """Log-probabilities [rows] float32 of base ids `tokens` [rows] in the distributions behind `choice`."""
        from_thinking = None
        if thinking is not None and self._policy.emit == "thinking":
            from_thinking = self._crossed(thinking.reading.logits.log_softmax(-1), tokens[:, None])[:, 0]
        if base is None:
            return _present(from_thinking)
        logits = base.reading.logits
        if choice.candidate is not None:
            logits = logits.index_copy(0, choice.opened, choice.candidate.logits)
        own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return own if from_thinking is None else own.index_copy(0, choice.opened, from_thinking[choice.opened])

    def _base_choice(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1) if self._bridge is None else self._bridge.base_choice(logits)

    def _crossed(self, logprobs: Tensor, tokens: Tensor) -> Tensor:
        """Thinking log-probs [rows, vocab] of base ids [rows, k] -> [rows, k]; -inf for ids it does not know."""
        ids = _present(self._bridge).to_thinking(tokens).to(logprobs.device)
        found = logprobs.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -math.inf)
        return found.to(self._device)

    def _gate(self, y_base: Tensor | None, y_thinking: Tensor | None, keys: Sequence[bytes], position: int) -> Tensor:
        """[rows] bool: where to steer."""
        policy = self._policy
        if policy.gate == "disagreement":
            return _present(y_base) != _present(y_thinking)
        if policy.gate == "random":
            rate = policy.gate_rate or 0.0
            opens = [draw(policy.seed, "gate", position, key) < rate for key in keys]
            return torch.tensor(opens, device=self._device)
        return torch.full((len(keys),), policy.gate == "always", device=self._device)

    def _steer(
        self,
        base: Sequences,
        thinking: Sequences | None,
        logprobs: Tensor | None,
        opened: Tensor,
        keys: Sequence[bytes],
        position: int,
    ) -> Candidate:
        keys = [keys[row] for row in opened.tolist()]
        category = self._category(thinking, opened, keys, position)
        direction = self._bias.expand(len(opened), -1)
        if self._policy.category != "none":
            direction = direction + self._vectors[category]
        if self._network is None:
            coefficients = self._coefficients.expand(len(opened), -1)
            multiples = coefficients.float().to(self._device)
        else:
            multiples = self._network.coefficient(base.reading.residual[opened], category)[:, None]
            coefficients = multiples.cpu().double()
        steering = multiples[:, :, None] * direction[:, None]
        logits = base.steered(opened, steering, self._windows)
        tokens = self._base_choice(logits)
        taken = self._select(tokens, logprobs, opened, keys, position)
        each = torch.arange(len(opened), device=self._device)
        return Candidate(
            token=tokens[each, taken],
            logits=logits[each, taken],
            category=category,
            coefficient=coefficients.gather(1, taken[:, None].cpu())[:, 0],
            window=self._window_ids[taken],
        )

    def _category(self, thinking: Sequences | None, opened: Tensor, keys: Sequence[bytes], position: int) -> Tensor:
        """[n] int64: the behavior of every opened row."""
        policy = self._policy
        if policy.category == "sae":
            residual = _present(thinking).reading.residual
            self._encoder = self._encoder.to(residual.device)
            return self._encoder.category(residual[opened.to(residual.device)]).to(self._device)
        if policy.category == "random":
            latents = len(self._vectors)
            chosen = [pick(latents, policy.seed, "category", position, key) for key in keys]
            return torch.tensor(chosen, device=self._device)
        return torch.full((len(keys),), NONE, device=self._device)

    def _select(
        self, tokens: Tensor, logprobs: Tensor | None, opened: Tensor, keys: Sequence[bytes], position: int
    ) -> Tensor:
        """tokens [n, C], logprobs [rows, thinking vocab] -> [n] int64: index of the candidate taken."""
        policy = self._policy
        if policy.select == "guardrail":
            logprobs = _present(logprobs)
            likely = self._crossed(logprobs[opened.to(logprobs.device)], tokens[:, self._preferred])
            return self._preferred[likely.argmax(1)]  # argmax takes the first of equals
        if policy.select == "random":
            chosen = [pick(tokens.shape[1], policy.seed, "select", position, key) for key in keys]
            return torch.tensor(chosen, device=self._device)
        return torch.zeros(len(tokens), dtype=torch.int64, device=self._device)


def _present(value: T | None) -> T:
    if value is None:
        raise ValueError("the policy reads a model or a tensor that was not given")
    return value
