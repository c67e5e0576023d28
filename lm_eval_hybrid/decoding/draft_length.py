"""How far the base model drafts before the thinking model verifies: as long as the next token is worth its cost.

A drafted token is accepted if the gate stays shut there and at all tokens before it. The models mostly part where the
base model is in doubt, so the chance of acceptance is learned while decoding, from the margin: the lead of the base
model's largest logit over the next. One more drafted token costs one step of the base model, and gains as many tokens
as its chance says; drafting goes on while that is more than a step has gained on average, the rule that maximises
tokens for the cost of a whole run. Costs are counted, not timed, so that a run can be repeated, except that the latency
of a remote request is measured. No token depends on any of this.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LONGEST_OVERLAP = 16
"""The most tokens drafted while the thinking model verifies."""

_EDGES = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0])
"""Bounds of the bins in which margins are counted."""

_PRIOR_DISAGREEMENT = 0.35
"""Prior chance of disagreement at margin 0; it halves with each unit of margin."""

_PRIOR_WEIGHT = 4.0
"""Number of observations that the prior counts for, in each bin."""

_VERIFICATION = 1.7
"""Steps that verifying a short draft costs, for a thinking model of the base's size: one, and what its length adds."""

_NEWEST_WEIGHT = 0.2
"""Weight of the newest request in the running average of latencies."""

_LOCAL_STEP = 0.02
"""Seconds of a drafting step, where only the thinking model is remote."""


class DraftLength:
    """Decides when a batch stops drafting.

    Args:
        relative_size: parameters of the thinking model for each of the base model's.
    """

    def __init__(self, relative_size: float) -> None:
        self._verification = _VERIFICATION * relative_size
        self._latencies: dict[str, float] = {}
        self._step: float | None = None
        middles = torch.cat([torch.zeros(1), _EDGES])
        self._seen = torch.full((len(middles),), _PRIOR_WEIGHT)
        self._accepted = _PRIOR_WEIGHT * (1 - _PRIOR_DISAGREEMENT * 0.5**middles)
        # As after a few rounds of average luck.
        self._gained, self._cost = 4.0, 4 + self._verification

    def chances(self, margins: Tensor) -> Tensor:
        """The chance of acceptance at these margins: float32 on the CPU, any shape."""
        return (self._accepted / self._seen)[self._bins(margins)]

    def table(self) -> tuple[Tensor, Tensor]:
        """(edges of the bins of margins, chance of acceptance in each bin), float32."""
        return _EDGES, self._accepted / self._seen

    @property
    def tokens_per_step(self) -> float:
        """Tokens gained for each step of cost, on average so far."""
        return self._gained / self._cost

    @property
    def overlapped_steps(self) -> int:
        """Tokens that the base model can draft while the thinking model verifies."""
        return min(LONGEST_OVERLAP, round(self._verification))

    def should_continue(self, chances: Sequence[float]) -> bool:
        """Whether to draft one more token in all rows, given each row's chance that its draft so far is accepted."""
        return sum(chances) / len(chances) > self.tokens_per_step

    def observe_acceptance(self, margins: Sequence[float], accepted: Sequence[bool]) -> None:
        """Learn from verified tokens: their margins, and whether each was accepted."""
        bins = self._bins(torch.tensor(margins))
        self._seen += torch.bincount(bins, minlength=len(self._seen))
        self._accepted += torch.bincount(bins, torch.tensor(accepted).float(), minlength=len(self._seen))

    def observe_latency(self, side: Literal["drafter", "verifier"], seconds: float, step: float | None = None) -> None:
        """Record the measured latency of a remote request, which is most of what a remote round costs.

        Args:
            seconds: of the request, without its drafting steps.
            step: seconds of one drafting step, where it drafted.
        """
        before = self._latencies.get(side, seconds)
        self._latencies[side] = before + _NEWEST_WEIGHT * (seconds - before)
        if step is not None:
            self._step = step if self._step is None else self._step + _NEWEST_WEIGHT * (step - self._step)
        self._verification = sum(self._latencies.values()) / (self._step or _LOCAL_STEP)

    def count_drafting(self, steps: int) -> None:
        """Add the cost of drafting steps."""
        self._cost += steps

    def count_overlapped(self, steps: int) -> None:
        """Add the cost of steps drafted during a verification: the part that exceeds the verification's own."""
        self._cost += max(0.0, steps - self._verification)

    def count_verification(self, gained: float) -> None:
        """Add the cost of a verification, and the tokens that the round gained a row, on average."""
        self._gained += gained
        self._cost += self._verification

    def _bins(self, margins: Tensor) -> Tensor:
        return torch.bucketize(margins, _EDGES)
