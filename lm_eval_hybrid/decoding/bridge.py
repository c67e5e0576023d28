"""Tokens across two tokenizers (DESIGN, section 4).

A token crosses as the ids that stand for the same bytes: mostly one id, the same or another; where the other vocabulary
has no such token, as the several ids that its bytes are written with. Special tokens of a distilled model often take
over the ids of the base's (`</think>` sits where `<|box_end|>` was), so those that no string pairs do by id; the two
ends of sequence pair whatever they are called. An id that only padding rows of an embedding stand for does not cross.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.decoding.token_bytes import token_bytes
from lm_eval_hybrid.errors import HybridError

_TOLERATED = 0.01
"""Share of base ids that may not cross: rare added tokens do not; a vocabulary that cannot be written is far above."""

Crossing = tuple[int, ...]


class Bridge:
    """Takes tokens from a base to a thinking model's tokenizer and back, and picks tokens that cross.

    Raises:
        HybridError: where more than 1% of the base's ids do not cross.
    """

    def __init__(self, base: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase) -> None:
        self._to_thinking = _Table(_crossings(base, thinking))
        self._to_base = _Table(_crossings(thinking, base))
        known = len(base.get_vocab())
        lost = known - self._to_thinking.known
        if lost > _TOLERATED * known:
            raise HybridError(
                f"the base's tokens must be writable in the thinking model's; found {lost} of {known} that are not, "
                f"{self._examples(base)} among them; use a thinking model whose tokenizer knows all bytes"
            )

    @property
    def one_to_one(self) -> bool:
        """Whether every base token crosses as one id."""
        return self._to_thinking.single

    def cross(self, token: int) -> Crossing:
        """A base token as thinking ids, none where it does not cross."""
        return self._to_thinking.crossings.get(token, ())

    def to_thinking(self, ids: Tensor) -> Tensor:
        """Base ids -> the first thinking id of each, int64 of any shape, -1 where one does not cross."""
        return self._to_thinking.look_up(ids)

    def to_base(self, ids: Tensor) -> Tensor:
        """Thinking ids -> the first base id of each, int64 of any shape, -1 where one does not cross."""
        return self._to_base.look_up(ids)

    def base_logits(self, logits: Tensor) -> Tensor:
        """Base logits [..., vocab] without the tokens that do not cross: those are -inf, or cut off.

        This is how padded vocabularies (logits wider than the tokenizer) stay out.
        """
        return self._to_thinking.masked(logits)

    def thinking_logits(self, logits: Tensor) -> Tensor:
        """Thinking logits [..., vocab] without the tokens that do not cross."""
        return self._to_base.masked(logits)

    def agree(self, base: Tensor, thinking: Tensor) -> Tensor:
        """Whether base ids and thinking ids (same shape) say the same: one's crossing begins with the other."""
        return (self.to_thinking(base) == thinking) | (self.to_base(thinking) == base)

    def _examples(self, base: PreTrainedTokenizerBase) -> str:
        lost = sorted(set(base.get_vocab().values()) - self._to_thinking.crossings.keys())
        return ", ".join(map(repr, base.convert_ids_to_tokens(lost[:3])))


def _crossings(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> dict[int, Crossing]:
    """Every source id that crosses, with its target ids."""
    strings, targets = source.get_vocab(), target.get_vocab()
    same_strings = strings == targets
    found = dict.fromkeys(strings.values(), ()) if same_strings else {}
    if same_strings:
        found = {index: (index,) for index in strings.values()}
    else:
        found = _by_bytes(source, target)
        found |= _specials(source, target)
    for end in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(source, end), getattr(target, end)
        if ours is not None and theirs is not None and (end == "eos_token_id" or ours not in found):
            found[ours] = (theirs,)
    return found


def _specials(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> dict[int, Crossing]:
    """Special tokens: by string, or by id where neither side knows the other's string."""
    strings, targets = source.get_vocab(), target.get_vocab()
    names = {i: str(token) for i, token in source.added_tokens_decoder.items()}
    free = {i for i, token in target.added_tokens_decoder.items() if str(token) not in strings}
    found: dict[int, Crossing] = {}
    for index, name in names.items():
        if name in targets:
            found[index] = (targets[name],)
        elif index in free:
            found[index] = (index,)
    return found


def _by_bytes(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> dict[int, Crossing]:
    """Ordinary tokens: as the target's token of the same bytes, as it writes their text, or byte by byte."""
    spelled = token_bytes(target)
    names, targets = source.get_vocab(), target.get_vocab()
    by_content: dict[bytes, int] = {}
    for index in sorted(spelled, reverse=True):
        by_content[spelled[index]] = index  # the smallest id of several
    strings = {index: name for name, index in names.items()}
    found: dict[int, Crossing] = {}
    for index, content in token_bytes(source).items():
        namesake = targets.get(strings.get(index, ""))
        if namesake is not None and spelled.get(namesake) == content:
            found[index] = (namesake,)
        elif content in by_content:
            found[index] = (by_content[content],)
        elif written := _written(content, target, spelled) or _byte_by_byte(content, by_content):
            found[index] = written
    return found


def _written(content: bytes, target: PreTrainedTokenizerBase, spelled: dict[int, bytes]) -> Crossing:
    """The ids that the target writes some text with; none where it is not text, or is written as another."""
    try:
        ids = target.encode(content.decode(), add_special_tokens=False)
    except UnicodeDecodeError:
        return ()
    return tuple(ids) if b"".join(spelled.get(i, b"") for i in ids) == content else ()


def _byte_by_byte(content: bytes, by_content: dict[bytes, int]) -> Crossing:
    ids: Sequence[int | None] = [by_content.get(bytes([byte])) for byte in content]
    return tuple(i for i in ids if i is not None) if None not in ids else ()


class _Table:
    """The crossings of one tokenizer's ids, and their first ids as a tensor, moved to where it is asked for, once."""

    def __init__(self, crossings: dict[int, Crossing]) -> None:
        self.crossings = crossings
        self.known = len(crossings)
        self.single = all(len(ids) == 1 for ids in crossings.values())
        self._first = torch.full((max(crossings, default=-1) + 1,), -1, dtype=torch.int64)
        if crossings:
            firsts = torch.tensor([ids[0] for ids in crossings.values()])
            self._first[torch.tensor(list(crossings))] = firsts
        self._unknown = self._first < 0
        self._complete = self.known == len(self._first)

    def look_up(self, ids: Tensor) -> Tensor:
        self._first = self._first.to(ids.device)
        inside = (ids >= 0) & (ids < len(self._first))
        return torch.where(inside, self._first[ids.clamp(0, len(self._first) - 1)], -1)

    def masked(self, logits: Tensor) -> Tensor:
        logits = logits[..., : len(self._unknown)]
        if self._complete:
            return logits
        self._unknown = self._unknown.to(logits.device)
        return logits.masked_fill(self._unknown[: logits.shape[-1]], -torch.inf)
