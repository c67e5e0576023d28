"""What the two models say after each of the same k tokens of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.models.protocol import Sequences


@dataclass(frozen=True)
class BaseView:
    """What the unsteered base says.

    Attributes:
        choice: [rows, k] int64, its likeliest token of those that cross.
        margin: [rows, k] float32, the lead of that one's logit over the next.
        logprob: [rows, k] float32, natural log of its probability among all tokens.
        residual: [rows, k, d] float32, after the hook layer; None where nobody asks for it.
        logits: [rows, k, vocab], without tokens that do not cross; None where only choices were kept.
    """

    choice: Tensor
    margin: Tensor
    logprob: Tensor
    residual: Tensor | None
    logits: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, residual: Tensor, bridge: Bridge | None, keep: bool = False) -> BaseView:
        """Read from what the model said (`protocol.ForwardOutput`).

        Raises:
            HybridError: for logits that are not numbers.
        """
        total = _totals(logits)
        logits = logits if bridge is None else bridge.base_logits(logits)
        best = logits.topk(min(2, logits.shape[-1]), dim=-1)
        values = best.values.float()
        check_numbers(values[..., 0], "base")
        margin, logprob = values[..., 0] - values[..., -1], values[..., 0] - total
        # Not topk's index: of equals the first is meant.
        return cls(logits.argmax(-1), margin, logprob, residual, logits if keep else None)

    @classmethod
    def joined(cls, views: list[BaseView]) -> BaseView:
        """Views of the same rows, one after the other. Logits are let go."""
        return cls(
            torch.cat([view.choice for view in views], 1),
            torch.cat([view.margin for view in views], 1),
            torch.cat([view.logprob for view in views], 1),
            torch.cat([view.residual for view in views if view.residual is not None], 1),
            None,
        )

    def at(self, rows: Sequence[int]) -> BaseView:
        """Of these rows only, in this order."""
        return self._each(lambda tensor: tensor[list(rows)])

    def cut(self, starts: Sequence[int]) -> BaseView:
        """Each row from its step `starts[row]` on, as long as the longest; beyond its end a row means nothing."""
        last, rows = self.choice.shape[1] - 1, torch.arange(len(starts))[:, None]
        columns = torch.tensor(starts)[:, None] + torch.arange(last + 1 - min(starts))
        columns = columns.clamp(max=last)
        return self._each(lambda tensor: tensor[rows, columns])

    def _each(self, change: Callable[[Tensor], Tensor]) -> BaseView:
        residual = None if self.residual is None else change(self.residual)
        return BaseView(change(self.choice), change(self.margin), change(self.logprob), residual, None)


class ThinkingView(Protocol):
    """What the thinking model says.

    Attributes:
        choice: [rows, k] int64, its likeliest token of those that cross, as its own id.
        crossed: [rows, k] int64, the (first) base id of that.
        logprob: [rows, k] float32, natural log of its probability among all tokens.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor

    def residuals(self, rows: Tensor, steps: Tensor) -> Tensor:
        """[n, d] float32: after the SAE's layer, after step steps[i] of row rows[i], each [n]."""

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [n, c] float32 of base ids [n, c], at places as of `residuals`.

        Of a token that crosses as several ids, that of the first; -inf for one that does not cross.
        """

    def likeliest(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """[n] int64: which of base ids [n, c] is likeliest; the first of equals."""

    def judge(self, row: int, step: int) -> Judge:
        """What is needed of it to find the likeliest of some tokens somewhere else."""

    def drawn(self, row: int, step: int, sampling: Sampling, position: int, key: bytes) -> int:
        """The base id of the thinking model's own token, drawn."""


class Judge(NamedTuple):
    """The likeliest tokens after one place.

    Attributes:
        tokens: base ids; logprobs: of each, natural log.
        floor: no other token's is higher.
    """

    tokens: list[int]
    logprobs: list[float]
    floor: float

    @classmethod
    def of(cls, tokens: Sequence[int], logprobs: Sequence[float], bridge: Bridge) -> Judge:
        """From the likeliest thinking ids, and their log-probabilities."""
        pairs = [
            (source, logprob)
            for token, logprob in zip(tokens, logprobs, strict=True)
            for source in bridge.written_with(token)
        ]
        return cls([token for token, _ in pairs], [logprob for _, logprob in pairs], min(logprobs))


JUDGED = 256
"""Tokens that a judge knows of at most."""


@dataclass(frozen=True)
class ThinkingReading:
    """A `ThinkingView` of all that was said; attributes that are not of that:

    Attributes:
        residual: [rows, k, d] float32, after the SAE's layer.
        logits: [rows, k, vocab].
        total: [rows, k] float32, their logsumexp.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor
    residual: Tensor
    logits: Tensor
    total: Tensor
    bridge: Bridge

    @classmethod
    def of(cls, logits: Tensor, residual: Tensor, bridge: Bridge) -> ThinkingReading:
        """Read from what the model said (`protocol.ForwardOutput`).

        Raises:
            HybridError: for logits that are not numbers.
        """
        total = _totals(logits)
        check_numbers(total, "thinking")
        choice = bridge.thinking_logits(logits).argmax(-1)
        logprob = logits.gather(-1, choice[..., None])[..., 0].float() - total
        return cls(choice, bridge.to_base(choice), logprob, residual, logits, total, bridge)

    def residuals(self, rows: Tensor, steps: Tensor) -> Tensor:
        return self.residual[rows.to(self.residual.device), steps.to(self.residual.device)]

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        rows, steps, tokens = (part.to(self.logits.device) for part in (rows, steps, tokens))
        ids = self.bridge.to_thinking(tokens)
        found = self.logits[rows[:, None], steps[:, None], ids.clamp(min=0)].float()
        return (found - self.total[rows, steps][:, None]).masked_fill(ids < 0, -math.inf)

    def likeliest(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        return self.logprobs(rows, steps, tokens).argmax(1)  # argmax takes the first of equals

    def judge(self, row: int, step: int) -> Judge:
        said = self.logits[row, step].float() - self.total[row, step]
        top = said.topk(min(JUDGED, len(said)))
        return Judge.of(top.indices.tolist(), top.values.tolist(), self.bridge)

    def drawn(self, row: int, step: int, sampling: Sampling, position: int, key: bytes) -> int:
        token = sampling.pick(self.bridge.thinking_logits(self.logits[row, step]), position, key)
        return int(self.bridge.to_base(torch.tensor(token)))


def _totals(logits: Tensor) -> Tensor:
    """[rows, k] float32: logsumexp of logits [rows, k, vocab]."""
    # Row by row: in half precision a float32 copy of all would be the largest tensor of a run.
    return torch.stack([row.float().logsumexp(-1) for row in logits])


def read_thinking(
    sequences: Sequences, crossings: Sequence[Sequence[Sequence[int]]], bridge: Bridge
) -> tuple[ThinkingReading, list[list[int]]]:
    """Have the thinking model read some tokens of every row, and say what it says after each.

    Args:
        crossings: of each row its tokens, one or more, each as thinking ids. What a view says of a row beyond its
            tokens means nothing.

    Returns:
        The view, and for each token of a row the index, in what was read of it, of its last id.
    """
    chunks = [[i for token in row for i in token] for row in crossings]
    counts = [len(chunk) for chunk in chunks]
    width = max(counts)
    ends = [[end - 1 for end in accumulate(map(len, row))] for row in crossings]
    reading = sequences.read(torch.tensor([chunk + [0] * (width - len(chunk)) for chunk in chunks]), counts)
    logits, residual = reading.logits, reading.residual
    if any(row != list(range(len(row))) for row in ends):
        steps = max(map(len, ends))
        columns = torch.tensor([row + [0] * (steps - len(row)) for row in ends], device=logits.device)
        rows = torch.arange(len(ends), device=logits.device)[:, None]
        logits, residual = logits[rows, columns], residual[rows, columns]
    return ThinkingReading.of(logits, residual, bridge), ends


def check_numbers(values: Tensor, role: str) -> None:
    """Check that what model `role` says is numbers.

    Raises:
        HybridError: it is not.
    """
    if values.isnan().any():
        raise HybridError(
            f"the {role} model must say numbers; found NaN among its logits; check its weights, or pass "
            "dtype=bfloat16 or dtype=float32"
        )
