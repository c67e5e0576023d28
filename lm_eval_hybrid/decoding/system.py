"""The parts that decode together: two models, and how they are used."""

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_hybrid.decoding.chooser import Chooser
from lm_eval_hybrid.decoding.draft_length import LONGEST, Pace
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.models.protocol import Backend, Sequences


@dataclass(frozen=True)
class System:
    """What decodes: models, and how they are used.

    Attributes:
        base, thinking: None for one that the policy does not read.
        steering: None where the policy does not steer.
        bridge: None without a thinking model.
        longest: tokens drafted at most before the thinking model reads.
        meanwhile: whether the base drafts on while the thinking model reads.
        end: the id that ends an answer, in the tokenizer of the model that speaks: the base, where it is read.
    """

    base: Backend | NdifModel | None
    thinking: Backend | NdifModel | None
    steering: Steering | None
    bridge: Bridge | None
    chooser: Chooser
    pace: Pace
    longest: int
    meanwhile: bool
    end: int | None

    def open_base(self, base: Backend, rows: int, ahead: int) -> Sequences:
        """Empty rows of the base."""
        if self.meanwhile:
            ahead += 2 * LONGEST  # drafted while the thinking model read: in the round before, and in this one
        return base.open(rows, self.layer, self.chooser.reach, ahead)

    def open_thinking(self, thinking: Backend, rows: int, ahead: int) -> Sequences:
        """Empty rows of the thinking model; `ahead` is in base tokens."""
        return thinking.open(rows, self.sae_layer, None, ahead)

    @property
    def layer(self) -> int:
        """The base's hook layer; any, where nothing is steered."""
        return 0 if self.steering is None else self.steering.layer

    @property
    def sae_layer(self) -> int:
        """The thinking model's hook layer."""
        return 0 if self.steering is None else self.steering.sae_layer

    def shown(self, token: int) -> Sequence[int]:
        """A spoken token, as the thinking model reads it."""
        return (token,) if self.bridge is None or self.base is None else self.bridge.cross(token)
