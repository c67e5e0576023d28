"""How far the base drafts before the thinking model reads: as long as the next token is worth its cost.

A drafted token stands if the two models agree on it and on all before it. They mostly part where the base itself is in
doubt, so the chance is learned, as decoding goes, from the base's margin: the lead of its likeliest token's logit over
the next. Drafting one more token costs one step of the base, and gains as many tokens as the chance says; to have the
most tokens for the cost of a whole run, it goes on while that is more than a step has gained on average (the rule that
maximises a ratio). Costs are counted, not timed, so that a run can be repeated; but where a model is on a server, what
the way there costs is timed. No token depends on it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST = 16
"""Tokens drafted at most before the thinking model reads."""

LONGEST_REMOTE = 48
"""The same where the base is on a server: a step more is cheap there, a request more is not."""

_EDGES = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0])
"""Bounds of the bins that margins are counted in."""

_DOUBT = 0.35
"""Chance of disagreement assumed at margin 0 before anything was seen; it halves with each unit of margin."""

_WEIGHT = 4.0
"""How many observations that assumption counts for, in each bin."""

_VERIFICATION = 1.7
"""Steps that reading a short draft costs, for a thinking model of the base's size: one and what its length adds."""

_NEWEST = 0.2
"""Weight of the newest request among all that were timed."""

_STEP = 0.02
"""Seconds of a draft's step, where only the thinking model is on a server."""


class Pace:
    """Decides when a batch stops drafting.

    Args:
        relative_size: parameters of the thinking model for each of the base's.
    """

    def __init__(self, relative_size: float) -> None:
        self._verification = _VERIFICATION * relative_size
        self._overheads: dict[object, float] = {}
        self._step: float | None = None
        middles = torch.cat([torch.zeros(1), _EDGES])
        self._seen = torch.full((len(middles),), _WEIGHT)
        self._agreed = _WEIGHT * (1 - _DOUBT * 0.5**middles)
        # As after a few rounds of middling luck.
        self._gained, self._cost = 4.0, 4 + self._verification

    def chances(self, margins: Tensor) -> Tensor:
        """Chance of agreement at these margins, float32 on the CPU, any shape."""
        return (self._agreed / self._seen)[self._bins(margins)]

    def table(self) -> tuple[Tensor, Tensor]:
        """(edges of the bins of margins, the chance in each bin), float32."""
        return _EDGES, self._agreed / self._seen

    @property
    def ratio(self) -> float:
        """Tokens that a step has gained on average."""
        return self._gained / self._cost

    def goes_on(self, standing: Sequence[float]) -> bool:
        """Whether to draft one more token for all rows: `standing` are their chances that the last one stands."""
        return sum(standing) / len(standing) > self.ratio

    @property
    def meanwhile(self) -> int:
        """Tokens that the base can draft while the thinking model reads."""
        return min(LONGEST, round(self._verification))

    def told(self, side: object, seconds: float, step: float | None = None) -> None:
        """Take what a round costs as it was measured, where a model is on a server: the way there is most of it.

        Args:
            side: whose cost it is.
            seconds: of its request, but for the steps of a draft.
            step: seconds of such a step, where it was a draft.
        """
        before = self._overheads.get(side, seconds)
        self._overheads[side] = before + _NEWEST * (seconds - before)
        if step is not None:
            self._step = step if self._step is None else self._step + _NEWEST * (step - self._step)
        self._verification = sum(self._overheads.values()) / (self._step or _STEP)

    def learn(self, margins: Sequence[float], agreed: Sequence[bool]) -> None:
        """Count positions at which both models have spoken."""
        bins = self._bins(torch.tensor(margins))
        self._seen += torch.bincount(bins, minlength=len(self._seen))
        self._agreed += torch.bincount(bins, torch.tensor(agreed).float(), minlength=len(self._seen))

    def drafted(self, steps: int) -> None:
        """Count steps of the base."""
        self._cost += steps

    def drafted_meanwhile(self, steps: int) -> None:
        """Count steps of the base beside a reading of the thinking model: by how much they take longer than that."""
        self._cost += max(0.0, steps - self._verification)

    def verified(self, gained: float) -> None:
        """Count a reading of the thinking model, and the tokens that the round gave a row, on average."""
        self._gained += gained
        self._cost += self._verification

    def _bins(self, margins: Tensor) -> Tensor:
        return torch.bucketize(margins, _EDGES)
