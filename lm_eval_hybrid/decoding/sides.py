"""The two sides of decoding, and the one place that chooses between local and remote models.

A local model runs token by token and keeps a KV cache (`local`). A remote one keeps nothing between requests, and so
gets as few as possible (`ndif`). Rows are those of the batch, in its order.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from lm_eval_hybrid.decoding.chooser import Steerer
from lm_eval_hybrid.decoding.context import DecodingContext
from lm_eval_hybrid.decoding.local import LocalDrafter, LocalVerifier
from lm_eval_hybrid.decoding.ndif.remote import RemoteDrafter, RemoteVerifier
from lm_eval_hybrid.decoding.records import Emission
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.views import BaseView, GatePosition, ThinkingView, Views


class Side(Protocol):
    """What both sides have in common.

    Attributes:
        piece: tokens of each text that are read at once in scoring.
    """

    piece: ClassVar[int]

    def insert(self, rows: Mapping[int, Row]) -> None:
        """Start these rows in their slots, dropping what was there, and prefill what they hold already."""

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these rows, in this order. A row listed twice is duplicated."""

    def commit(self, rows: Sequence[Row]) -> None:
        """End a round: `rows` now hold what was accepted, and the rest is rolled back."""


class Drafter(Side, Protocol):
    """The model that speaks: the base model, or one that decodes alone.

    Attributes:
        steered_at_once: gate positions that are steered at once in scoring.
    """

    steered_at_once: ClassVar[int]

    def draft(self, rows: Sequence[Row]) -> tuple[list[list[int]], BaseView]:
        """One or more next tokens for every row, and the view that they were chosen from, padded where they end."""

    def continue_drafting(self, rows: Sequence[Row]) -> None:
        """Draft on while the thinking model verifies, in case all tokens are accepted."""

    def steer(
        self, steerer: Steerer, drafts: Sequence[Draft], views: Views, positions: Sequence[GatePosition]
    ) -> list[Emission]:
        """What is emitted at one or more positions, the first of each draft where the gate opened."""

    def score(self, drafts: Sequence[Draft]) -> BaseView:
        """The view of given tokens: `drafted_logprob` is theirs, and there are no margins where the model is remote."""

    def score_steered(
        self, steerer: Steerer, views: Views, positions: Sequence[GatePosition]
    ) -> tuple[Tensor, list[int]]:
        """Score the given tokens at positions where the gate opened, as the selected candidates'.

        Returns:
            Their log-probabilities, [n] float32 on the CPU, and the tokens that would be emitted.
        """


class Verifier(Side, Protocol):
    """The thinking model."""

    def verify(self, drafts: Sequence[Draft], base: BaseView, every: bool = False) -> ThinkingView:
        """Read all drafts, and view what the thinking model says where each of their tokens was chosen.

        Args:
            every: whether all openings of the gate count, or only the first of each draft.
        """


def open_sides(context: DecodingContext, rows: int, scoring: bool = False) -> tuple[Drafter, Verifier | None]:
    """Make room for so many rows in the models of the context, for decoding or for scoring."""
    speaker, verification = context.speaker, context.verification
    drafter: Drafter
    if speaker.is_remote:
        longest = context.longest_draft or RemoteDrafter.longest
        drafter = RemoteDrafter(context, speaker, longest)
    else:
        longest = context.longest_draft or LocalDrafter.longest
        drafter = LocalDrafter(context, speaker, rows, LocalDrafter.piece if scoring else longest)
    if verification is None:
        return drafter, None
    model = verification.model
    if model.is_remote:
        return drafter, RemoteVerifier(context, verification, model)
    return drafter, LocalVerifier(verification, model, rows, LocalVerifier.piece if scoring else longest)
