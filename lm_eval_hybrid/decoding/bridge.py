"""Token ids across two tokenizers of one family (DESIGN, section 4).

Most ids mean the same string in both and pass through. Special tokens of a distilled model often take over the
ids of the base's (`</think>` sits where `<|box_end|>` was), so those pair by id; the two ends of sequence pair
whatever they are called. An id that only padding rows of an embedding stand for has no partner.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.errors import HybridError

_TOLERATED = 0.01
"""Share of base ids that may lack a partner: rare added tokens do; another vocabulary is far above it."""


class Bridge:
    """Maps token ids between a base and a thinking model's tokenizer, and picks tokens that both know.

    Raises:
        HybridError: where more than 1% of the base's ids have no partner.
    """

    def __init__(self, base: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase) -> None:
        self._to_thinking = _Table(_partners(base, thinking))
        self._to_base = _Table(_partners(thinking, base))
        known = len(base.get_vocab())
        lost = known - self._to_thinking.known
        if lost > _TOLERATED * known:
            raise HybridError(
                f"the two tokenizers must share their vocabulary; found {lost} of the base's {known} tokens "
                "unknown to the thinking model; use a thinking model derived from this base"
            )

    def to_thinking(self, ids: Tensor) -> Tensor:
        """Base ids -> thinking ids, int64 of any shape, -1 where there is no partner."""
        return self._to_thinking.look_up(ids)

    def to_base(self, ids: Tensor) -> Tensor:
        """Thinking ids -> base ids, int64 of any shape, -1 where there is no partner."""
        return self._to_base.look_up(ids)

    def base_choice(self, logits: Tensor) -> Tensor:
        """Base logits [..., vocab] -> the likeliest base id [...] that the thinking model knows too.

        This is how padded vocabularies (logits wider than the tokenizer) stay out: they have no partners.
        """
        return self._to_thinking.argmax(logits)

    def thinking_choice(self, logits: Tensor) -> Tensor:
        """Thinking logits [..., vocab] -> the likeliest thinking id [...] that the base knows too."""
        return self._to_base.argmax(logits)


def _partners(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> Tensor:
    """[largest source id + 1] int64: each source id's partner in target, or -1."""
    strings, targets = source.get_vocab(), target.get_vocab()
    table = torch.full((max(strings.values()) + 1,), -1, dtype=torch.int64)
    for string, index in strings.items():
        table[index] = targets.get(string, -1)
    # Only specials that no string pairs, on either side, pair by id: the others' meaning is known.
    free = {i for i, token in target.added_tokens_decoder.items() if str(token) not in strings}
    for index in source.added_tokens_decoder:
        if table[index] < 0 and index in free:
            table[index] = index
    for end in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(source, end), getattr(target, end)
        if ours is not None and theirs is not None and (end == "eos_token_id" or table[ours] < 0):
            table[ours] = theirs
    return table


class _Table:
    """A partner id, or -1, for every id of one tokenizer; moved to where it is asked for, once."""

    def __init__(self, partners: Tensor) -> None:
        self.known = int((partners >= 0).sum())
        self._partners = partners
        self._unknown = partners < 0
        self._complete = self.known == len(partners)

    def look_up(self, ids: Tensor) -> Tensor:
        self._partners = self._partners.to(ids.device)
        inside = (ids >= 0) & (ids < len(self._partners))
        return torch.where(inside, self._partners[ids.clamp(0, len(self._partners) - 1)], -1)

    def argmax(self, logits: Tensor) -> Tensor:
        logits = logits[..., : len(self._unknown)]
        if not self._complete:
            self._unknown = self._unknown.to(logits.device)
            logits = logits.masked_fill(self._unknown[: logits.shape[-1]], -torch.inf)
        return logits.argmax(-1)
