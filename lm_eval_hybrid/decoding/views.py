"""What the two models say after each of the same k tokens of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.request import Draft
from lm_eval_hybrid.decoding.sampling import TokenDraw, sample
from lm_eval_hybrid.decoding.tokens.bridge import Bridge, Choices

TOP_K = 256
"""How many tokens a `TopKLogprobs` holds at most."""


@dataclass(frozen=True)
class GatePosition:
    """A position at which the gate opened: after `step` tokens of a draft, which is row `row` of the views."""

    row: int
    step: int
    draft: Draft

    @property
    def column(self) -> int:
        """Index of the last token before it in the row of the model that speaks, prompt included."""
        return len(self.draft.row.ids) - 1 + self.step

    @property
    def position(self) -> int:
        """Index of the token to be generated there."""
        return self.draft.row.position + self.step

    @property
    def key(self) -> bytes:
        """Digest of the row's prompt."""
        return self.draft.row.key

    @property
    def draw(self) -> TokenDraw | None:
        """How the token is drawn; None: greedily."""
        return self.draft.row.draw(self.position)


@dataclass(frozen=True)
class BaseView:
    """What the unsteered base model says, or the thinking model where it decodes alone.

    Attributes:
        choice: [rows, k] int64, its likeliest token among those that may be chosen.
        margin: [rows, k] float32, the lead of that token's logit over the next.
        logprob: [rows, k] float32, natural log of that token's probability among all tokens.
        drafted_logprob: [rows, k] float32, the same of the token that was drafted, which may have been sampled.
        residual: [rows, k, d] float32, after the hook layer; None where no decision reads it.
    """

    choice: Tensor
    margin: Tensor
    logprob: Tensor
    drafted_logprob: Tensor
    residual: Tensor | None

    @classmethod
    def of(
        cls, logits: Tensor, choices: Choices, residual: Tensor | None, role: str, drafted: Tensor | None = None
    ) -> BaseView:
        """The view of logits [rows, k, vocab].

        Args:
            role: names the model in errors.
            drafted: [rows, k] int64, the drafted tokens; None: they are the likeliest.

        Raises:
            HybridError: there are NaN among the logits.
        """
        total = totals(logits)
        allowed = choices.masked(logits)
        values = allowed.topk(min(2, allowed.shape[-1]), dim=-1).values.float()
        check_not_nan(values[..., 0], role)
        logprob = drafted_logprob = values[..., 0] - total
        if drafted is not None:
            drafted_logprob = logits.gather(-1, drafted[..., None])[..., 0].float() - total
        # Not topk's index: of equal logits the first token counts.
        return cls(allowed.argmax(-1), values[..., 0] - values[..., -1], logprob, drafted_logprob, residual)

    @classmethod
    def combined(cls, views: Sequence[BaseView], combine: Callable[[list[Tensor]], Tensor]) -> BaseView:
        """One view of several, tensor by tensor."""
        residuals = [view.residual for view in views if view.residual is not None]
        return cls(
            combine([view.choice for view in views]),
            combine([view.margin for view in views]),
            combine([view.logprob for view in views]),
            combine([view.drafted_logprob for view in views]),
            combine(residuals) if residuals else None,
        )

    @classmethod
    def joined(cls, views: Sequence[BaseView]) -> BaseView:
        """Views of the same rows, one after the other."""
        return cls.combined(views, lambda tensors: torch.cat(tensors, 1))

    def select(self, rows: Sequence[int]) -> BaseView:
        """These rows only, in this order."""
        return self.combined([self], lambda tensors: tensors[0][list(rows)])

    def row(self, row: int, length: int) -> BaseView:
        """The first `length` steps of one row, in tensors without a dimension of rows."""
        return self.combined([self], lambda tensors: tensors[0][row, :length])

    def cut(self, starts: Sequence[int]) -> BaseView:
        """Each row from its step `starts[row]` on, padded at its end to the longest."""
        last, rows = self.choice.shape[1] - 1, torch.arange(len(starts))[:, None]
        columns = torch.tensor(starts)[:, None] + torch.arange(last + 1 - min(starts))
        columns = columns.clamp(max=last)
        return self.combined([self], lambda tensors: tensors[0][rows, columns])

    def residuals(self, positions: Sequence[GatePosition]) -> Tensor:
        """[n, d] float32: the residual stream after the hook layer."""
        if self.residual is None:
            raise ValueError("the base model's residuals were not requested")
        return self.residual[index_of(positions, self.residual.device)]


class ThinkingView(Protocol):
    """What the thinking model says.

    Attributes:
        crossed: [rows, k] int64, its likeliest token among those that cross, as the (first) base id of that token.
        logprob: [rows, k] float32, natural log of that token's probability among all tokens.
    """

    @property
    def crossed(self) -> Tensor: ...

    @property
    def logprob(self) -> Tensor: ...

    def agrees(self, choice: Tensor) -> Tensor:
        """[rows, k] bool: where its choice is the same token as the base ids [rows, k], across vocabularies."""

    def residuals(self, positions: Sequence[GatePosition]) -> Tensor:
        """[n, d] float32: the residual stream after the SAE's layer."""

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [n, c] float32 of base ids [n, c], after step steps[i] of row rows[i], each [n].

        Of a token that crosses as several ids, that of the first; -inf for one that does not cross.
        """

    def likeliest(self, positions: Sequence[GatePosition], tokens: Tensor) -> Tensor:
        """[n] int64: index of the likeliest of base ids [n, c] at each position; the first of equals."""

    def top_k(self, position: GatePosition) -> TopKLogprobs:
        """The tokens and log-probabilities that a server needs to rank candidates itself."""

    def own_tokens(self, positions: Sequence[GatePosition]) -> list[int]:
        """The thinking model's own token at each position, as a base id: drawn where the position says how."""


class TopKLogprobs(NamedTuple):
    """The likeliest tokens at one position.

    Attributes:
        tokens: base ids.
        logprobs: natural log of the probability of each.
        floor: no other token's log-probability is higher.
    """

    tokens: list[int]
    logprobs: list[float]
    floor: float

    @classmethod
    def of(cls, tokens: Sequence[int], logprobs: Sequence[float], bridge: Bridge) -> TopKLogprobs:
        """From the likeliest thinking ids and their log-probabilities."""
        pairs = [
            (source, logprob)
            for token, logprob in zip(tokens, logprobs, strict=True)
            for source in bridge.written_with(token)
        ]
        return cls([token for token, _ in pairs], [logprob for _, logprob in pairs], min(logprobs))


class NoThinkingView:
    """Stands for a thinking model that the policy never reads; reading it all the same is a bug."""

    @property
    def crossed(self) -> Tensor:
        self._refuse()

    logprob = crossed

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ValueError("the policy does not read the thinking model")

    agrees = residuals = logprobs = likeliest = top_k = own_tokens = _refuse


class Views(NamedTuple):
    """What both models say of the same tokens."""

    base: BaseView
    thinking: ThinkingView


@dataclass(frozen=True)
class LocalThinkingView:
    """The `ThinkingView` of a model in this process, which has all logits.

    Attributes:
        choice: [rows, k] int64, its likeliest token among those that cross, as its own id.
        residual: [rows, k, d] float32, after the SAE's layer.
        logits: [rows, k, vocab], in the model's own dtype.
        total: [rows, k] float32, logsumexp of the logits.
    """

    choice: Tensor
    crossed: Tensor
    logprob: Tensor
    residual: Tensor
    logits: Tensor
    total: Tensor
    bridge: Bridge

    @classmethod
    def of(cls, logits: Tensor, residual: Tensor, bridge: Bridge) -> LocalThinkingView:
        """The view of logits [rows, k, vocab].

        Raises:
            HybridError: there are NaN among the logits.
        """
        total = totals(logits)
        check_not_nan(total, "thinking")
        choice = bridge.thinking_logits(logits).argmax(-1)
        logprob = logits.gather(-1, choice[..., None])[..., 0].float() - total
        return cls(choice, bridge.to_base(choice), logprob, residual, logits, total, bridge)

    def agrees(self, choice: Tensor) -> Tensor:
        return self.bridge.agree(choice, self.choice.to(choice.device))

    def residuals(self, positions: Sequence[GatePosition]) -> Tensor:
        return self.residual[index_of(positions, self.residual.device)]

    def logprobs(self, rows: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        rows, steps, tokens = (part.to(self.logits.device) for part in (rows, steps, tokens))
        ids = self.bridge.to_thinking(tokens)
        logits = self.logits[rows[:, None], steps[:, None], ids.clamp(min=0)].float()
        return (logits - self.total[rows, steps][:, None]).masked_fill(ids < 0, -math.inf)

    def likeliest(self, positions: Sequence[GatePosition], tokens: Tensor) -> Tensor:
        rows, steps = index_of(positions, self.logits.device)
        return self.logprobs(rows, steps, tokens).argmax(1)  # argmax takes the first of equals

    def top_k(self, position: GatePosition) -> TopKLogprobs:
        logprobs = self.logits[position.row, position.step].float() - self.total[position.row, position.step]
        top = logprobs.topk(min(TOP_K, len(logprobs)))
        return TopKLogprobs.of(top.indices.tolist(), top.values.tolist(), self.bridge)

    def own_tokens(self, positions: Sequence[GatePosition]) -> list[int]:
        index = index_of(positions, self.logits.device)
        draws = [position.draw for position in positions]
        if not any(draws):
            return self.crossed[index].tolist()
        tokens = sample(self.choice[index].tolist(), self.bridge.thinking_logits(self.logits[index]), draws)
        return self.bridge.to_base(torch.tensor(tokens)).tolist()


def index_of(positions: Sequence[GatePosition], device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, steps), each [n] int64: the index of positions in a view's tensors."""
    rows = torch.tensor([position.row for position in positions], device=device)
    return rows, torch.tensor([position.step for position in positions], device=device)


def totals(logits: Tensor) -> Tensor:
    """[rows, k] float32: logsumexp of logits [rows, k, vocab]."""
    # Row by row: in half precision a float32 copy of all would be the largest tensor of a run.
    return torch.stack([row.float().logsumexp(-1) for row in logits])


def check_not_nan(values: Tensor, role: str) -> None:
    """Check what the `role` model computed.

    Raises:
        HybridError: there are NaN among the values.
    """
    if values.isnan().any():
        raise HybridError(
            f"the {role} model produced NaN logits; check its weights, or pass dtype=bfloat16 or dtype=float32"
        )
