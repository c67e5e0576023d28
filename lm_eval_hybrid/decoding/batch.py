"""Rows decoded in step by both models: what they have read, and who is still going."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lm_eval_hybrid.backends.protocol import Backend
from lm_eval_hybrid.decoding.bridge import Bridge
from lm_eval_hybrid.decoding.choosing import Choice, Chooser
from lm_eval_hybrid.decoding.draws import context_digest
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.errors import HybridError


@dataclass(frozen=True)
class Prompt:
    """One prompt, as token ids of each model's own tokenizer."""

    base_ids: Sequence[int]
    thinking_ids: Sequence[int]


class Batch:
    """Prompts and the tokens that follow them. A backend that is None is not run; without prompts none is.

    Attributes:
        base, thinking: what each model has read so far.
        position: index of the next token to be generated, the same for all rows.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        base: Backend | None,
        thinking: Backend | None,
        steering: Steering | None,
        bridge: Bridge | None,
        chooser: Chooser,
    ) -> None:
        self.position = 0
        self._bridge = bridge
        self._chooser = chooser
        self._keys = [context_digest(prompt.base_ids) for prompt in prompts]
        layer, sae_layer = (steering.layer, steering.sae_layer) if steering is not None else (0, 0)
        self.base = self.thinking = None
        if base is not None and prompts:
            self.base = base.open([list(p.base_ids) for p in prompts], layer, chooser.reach)
        if thinking is not None and prompts:
            self.thinking = thinking.open([list(p.thinking_ids) for p in prompts], sae_layer, None)

    def choose(self) -> Choice:
        """Decide the next token of every row."""
        return self._chooser.choose(self.base, self.thinking, self._keys, self.position)

    def extend(self, tokens: Tensor, slots: Sequence[int]) -> None:
        """Append tokens ([rows] int64, base ids) and go on with the rows at `slots` only; none: all is done.

        Raises:
            HybridError: for a token that the thinking model does not know.
        """
        self.position += 1
        if not slots:
            return
        if len(slots) < len(tokens):
            kept = tokens.new_tensor(slots)
            tokens = tokens[kept]
            self._keys = [self._keys[slot] for slot in slots]
            for sequences in (self.base, self.thinking):
                if sequences is not None:
                    sequences.keep(kept)
        if self.base is not None:
            self.base.extend(tokens)
        if self.thinking is not None and self._bridge is not None:
            crossed = self._bridge.to_thinking(tokens)
            if (crossed < 0).any():
                raise HybridError(
                    "each token must be known to the thinking model; found base ids "
                    f"{tokens[crossed < 0].tolist()}, which are not; use a pair with one vocabulary"
                )
            self.thinking.extend(crossed)
