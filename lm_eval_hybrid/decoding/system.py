"""The parts that decode together: two models, and how they are used."""

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_hybrid.backends.protocol import Backend, Sequences
from lm_eval_hybrid.decoding.bridge import Bridge
from lm_eval_hybrid.decoding.choosing import Chooser
from lm_eval_hybrid.decoding.pace import Pace
from lm_eval_hybrid.decoding.steering import Steering


@dataclass(frozen=True)
class System:
    """What decodes: models, and how they are used.

    Attributes:
        base, thinking: None for one that the policy does not read.
        steering: None where the policy does not steer.
        bridge: None without a thinking model.
        longest: tokens drafted at most before the thinking model reads.
        end: the id that ends an answer, in the tokenizer of the model that speaks: the base, where it is read.
    """

    base: Backend | None
    thinking: Backend | None
    steering: Steering | None
    bridge: Bridge | None
    chooser: Chooser
    pace: Pace
    longest: int
    end: int | None

    def open(self, rows: int, ahead: int) -> tuple[Sequences | None, Sequences | None]:
        """Empty rows of both models; `ahead` is in base tokens."""
        layer, sae_layer = (self.steering.layer, self.steering.sae_layer) if self.steering is not None else (0, 0)
        base = None if self.base is None else self.base.open(rows, layer, self.chooser.reach, ahead)
        thinking = None if self.thinking is None else self.thinking.open(rows, sae_layer, None, ahead)
        return base, thinking

    def shown(self, token: int) -> Sequence[int]:
        """A spoken token, as the thinking model reads it."""
        return (token,) if self.bridge is None or self.base is None else self.bridge.cross(token)
