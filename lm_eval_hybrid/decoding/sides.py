"""The two models of a batch, as the batch asks them: where a model is makes a difference here and nowhere else.

A model in this process is asked step by step and keeps what it has read. A model on a server keeps nothing between
requests, so it is asked as seldom as can be (`decoding/ndif/drafting.py`).
"""

from collections.abc import Sequence
from typing import Protocol

from lm_eval_hybrid.decoding.chooser import Candidates, Place
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView

Drafts = list[list[int]]
"""Of every row the tokens that the base would say next, one or more; none where the base is not read."""

Steps = Sequence[int | None]
"""Of every row the step of its draft at which the gate opened; None where it did not."""


class Side(Protocol):
    """Rows of one model; they are those of the batch, in its order."""

    def insert(self, rows: dict[int, Row]) -> None:
        """Begin these rows in their slots, whatever was there."""

    def select(self, slots: Sequence[int]) -> None:
        """Go on with these slots only, in this order."""

    def settle(self, rows: Sequence[Row]) -> None:
        """A round is over: `rows` hold what stands of what was read."""


class BaseSide(Side, Protocol):
    """The base model."""

    def draft(self, rows: Sequence[Row]) -> tuple[Drafts, BaseView]:
        """What it would say next, and what it chose that from; a view of a row beyond its draft means nothing."""

    def go_on(self, rows: Sequence[Row]) -> None:
        """Draft on while the thinking model reads what was drafted, in case it all stands."""

    def steer(
        self,
        rows: Sequence[Row],
        drafted: Drafts,
        steps: Steps,
        base: BaseView,
        thinking: ThinkingView | None,
        places: Sequence[Place],
    ) -> Candidates:
        """Try all candidates at `places`, where the gate opened in some rows (one or more), and take one at each."""


class ThinkingSide(Side, Protocol):
    """The thinking model."""

    def verify(
        self, rows: Sequence[Row], drafted: Drafts, base: BaseView | None
    ) -> tuple[ThinkingView, list[list[int]]]:
        """What it says after each token that the base chose after; and, for each of these, the index in what it had
        not read before of the last id that it reads."""
