"""Tokens across two tokenizers (DESIGN, section 4).

A token crosses as the ids that stand for the same bytes: mostly one id, the same or another; where the other vocabulary
has no such token, as the several ids that its bytes are written with. Special tokens of a distilled model often take
over the ids of the base's (`</think>` sits where `<|box_end|>` was), so where most ids mean the same those that no
string pairs do by id; the two ends of sequence pair whatever they are called. An id that only padding rows of an
embedding stand for does not cross.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.tokens.vocabulary import Vocabulary

_TOLERATED = 0.01
"""Share of base ids that may not cross: rare added tokens do not; a vocabulary that cannot be written is far above."""

Crossing = tuple[int, ...]


class Bridge:
    """Takes tokens from a base to a thinking model's tokenizer and back, and picks tokens that cross.

    Raises:
        HybridError: where more than 1% of the base's ids do not cross.
    """

    def __init__(self, base: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase) -> None:
        ours, theirs = Vocabulary(base), Vocabulary(thinking)
        there = _crossings(ours, theirs)
        self._to_thinking = _Table(there)
        # What the thinking model says is emitted as the first of its base ids, which it then has to read.
        self._to_base = _Table({index: ids for index, ids in _crossings(theirs, ours).items() if ids[0] in there})
        known = len(ours.ids)
        lost = known - self._to_thinking.known
        if lost > _TOLERATED * known:
            raise HybridError(
                f"the base's tokens must be writable in the thinking model's; found {lost} of {known} that are not, "
                f"{self._examples(base)} among them; use a thinking model whose tokenizer knows all bytes"
            )

    def cross(self, token: int) -> Crossing:
        """A base token as thinking ids, none where it does not cross."""
        return self._to_thinking.crossings.get(token, ())

    def back(self, token: int) -> Crossing:
        """A thinking token as base ids, none where it does not cross."""
        return self._to_base.crossings.get(token, ())

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

    def agreeing(self, token: int) -> list[int]:
        """The thinking ids that say the same as a base id; see `agree`."""
        return sorted({*self.cross(token)[:1], *self._to_base.sources.get(token, ())})

    def written_with(self, token: int) -> list[int]:
        """The base ids whose crossings begin with a thinking id."""
        return self._to_thinking.sources.get(token, [])

    @property
    def base_choices(self) -> "Choices":
        """The base ids that cross."""
        return self._to_thinking.choices

    @property
    def thinking_choices(self) -> "Choices":
        """The thinking ids that cross."""
        return self._to_base.choices

    def _examples(self, base: PreTrainedTokenizerBase) -> str:
        lost = sorted(set(base.get_vocab().values()) - self._to_thinking.crossings.keys())
        return ", ".join(map(repr, base.convert_ids_to_tokens(lost[:3])))


def _crossings(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Every source id that crosses, with its target ids."""
    if source.ids == target.ids:
        found = {index: (index,) for index in source.ids.values()}
    else:
        found = _ordinary(source, target) | _special(source, target)
    if source.pad is not None and target.pad is not None and source.pad not in found:
        found[source.pad] = (target.pad,)
    if source.end is not None and target.end is not None:
        found[source.end] = (target.end,)
    return found


def _ordinary(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Tokens that stand for text: as the target's token for the same, or as it writes that."""
    alike = source.spell is target.spell
    found: dict[int, Crossing] = {}
    for name, index in source.ids.items():
        if index in source.special:
            continue
        namesake = target.ids.get(name)
        known = namesake is not None and namesake not in target.special
        # Mostly a name says it: the bytes need not be spelled out.
        if known and ((alike and name not in source.added and name not in target.added) or _same(source, target, name)):
            found[index] = (namesake,)
            continue
        content = source.content(name)
        twin = target.by_content.get(content)
        if crossing := (twin,) if twin is not None else target.write(content):
            found[index] = crossing
    return found


def _same(source: Vocabulary, target: Vocabulary, name: str) -> bool:
    return source.content(name) == target.content(name)


def _special(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Added tokens: by string, or, in related vocabularies, by id where neither side knows the other's string."""
    same = sum(target.ids.get(name) == index for name, index in source.ids.items())
    related = 2 * same > len(source.ids)
    free = {index for name, index in target.added.items() if related and name not in source.ids}
    found: dict[int, Crossing] = {}
    for name, index in source.added.items():
        if name in target.ids:
            found[index] = (target.ids[name],)
        elif index in free:
            found[index] = (index,)
    return found


class Choices(NamedTuple):
    """Which ids may be chosen: those below `width`, but for the `blocked`."""

    width: int | None
    blocked: tuple[int, ...]


class _Table:
    """The crossings of one tokenizer's ids, and their first ids as a tensor, moved to where it is asked for, once."""

    def __init__(self, crossings: dict[int, Crossing]) -> None:
        self.crossings = crossings
        self.known = len(crossings)
        self._first = torch.full((max(crossings, default=-1) + 1,), -1, dtype=torch.int64)
        if crossings:
            firsts = torch.tensor([ids[0] for ids in crossings.values()])
            self._first[torch.tensor(list(crossings))] = firsts
        self._unknown = self._first < 0
        self._complete = self.known == len(self._first)

    @cached_property
    def sources(self) -> dict[int, list[int]]:
        """The ids whose crossings begin with an id."""
        found: dict[int, list[int]] = {}
        for index, ids in self.crossings.items():
            found.setdefault(ids[0], []).append(index)
        return found

    @cached_property
    def choices(self) -> Choices:
        return Choices(len(self._unknown), tuple(self._unknown.nonzero()[:, 0].tolist()))

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
