"""Aligns the tokens of two tokenizers.

A token crosses as the ids that stand for the same bytes in the other vocabulary: mostly one id, the same or another;
where the other vocabulary has no such token, the several ids that its bytes are written with. Special tokens of a
distilled model often take over the ids of the base's (`</think>` sits where `<|box_end|>` was), so where most ids mean
the same, those that no string pairs are paired by id; the two ends of sequence are paired whatever they are called. An
id that only pads the embedding does not cross.
"""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.tokens.vocabulary import Vocabulary

_TOLERATED = 0.01
"""Share of base ids that may not cross: rare added tokens do not; a vocabulary that cannot be written is far above."""

Crossing = tuple[int, ...]


class Choices:
    """Which token ids may be chosen: those below `width` that are not `blocked`; all of them where `width` is None."""

    def __init__(self, allowed: Iterable[int] | None = None) -> None:
        self.width: int | None = None
        self.blocked: tuple[int, ...] = ()
        if allowed is not None:
            ids = torch.tensor(sorted(allowed), dtype=torch.int64)
            self.width = int(ids[-1]) + 1 if len(ids) else 0
            self._mask = torch.ones(self.width, dtype=torch.bool)
            self._mask[ids] = False
            self.blocked = tuple(self._mask.nonzero()[:, 0].tolist())

    def masked(self, logits: Tensor) -> Tensor:
        """Logits [..., vocab] without the other tokens: those are -inf, or cut off.

        This is how padded vocabularies (logits wider than the tokenizer) are left out.
        """
        if self.width is None:
            return logits
        logits = logits[..., : self.width]
        if not self.blocked:
            return logits
        self._mask = self._mask.to(logits.device)
        return logits.masked_fill(self._mask[: logits.shape[-1]], -torch.inf)


class Bridge:
    """Takes tokens from a base to a thinking model's tokenizer and back, and masks those that do not cross.

    Attributes:
        base_choices, thinking_choices: the ids of each vocabulary that cross.

    Raises:
        HybridError: more than 1% of the base's ids do not cross.
    """

    def __init__(self, base: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase) -> None:
        ours, theirs = Vocabulary(base), Vocabulary(thinking)
        to_thinking = _crossings(ours, theirs)
        # The thinking model's token is emitted as the first of its base ids, which it then has to read.
        to_base = {index: ids for index, ids in _crossings(theirs, ours).items() if ids[0] in to_thinking}
        self._to_thinking, self._to_base = _Table(to_thinking), _Table(to_base)
        self.base_choices, self.thinking_choices = Choices(to_thinking), Choices(to_base)
        known = len(ours.ids)
        lost = known - len(to_thinking)
        if lost > _TOLERATED * known:
            examples = base.convert_ids_to_tokens(sorted(set(ours.ids.values()) - to_thinking.keys())[:3])
            raise HybridError(
                f"{lost} of the base model's {known} tokens cannot be written in the thinking model's vocabulary, "
                f"{', '.join(map(repr, examples))} among them; use a thinking model whose tokenizer knows all bytes"
            )

    def cross(self, token: int) -> Crossing:
        """A base token as thinking ids; empty if it does not cross."""
        return self._to_thinking.crossings.get(token, ())

    def back(self, token: int) -> Crossing:
        """A thinking token as base ids; empty if it does not cross."""
        return self._to_base.crossings.get(token, ())

    def to_thinking(self, ids: Tensor) -> Tensor:
        """Base ids -> the first thinking id of each: int64 of any shape, -1 where one does not cross."""
        return self._to_thinking.look_up(ids)

    def to_base(self, ids: Tensor) -> Tensor:
        """Thinking ids -> the first base id of each: int64 of any shape, -1 where one does not cross."""
        return self._to_base.look_up(ids)

    def base_logits(self, logits: Tensor) -> Tensor:
        """Base logits [..., vocab] without the tokens that do not cross; see `Choices.masked`."""
        return self.base_choices.masked(logits)

    def thinking_logits(self, logits: Tensor) -> Tensor:
        """Thinking logits [..., vocab] without the tokens that do not cross; see `Choices.masked`."""
        return self.thinking_choices.masked(logits)

    def agree(self, base: Tensor, thinking: Tensor) -> Tensor:
        """Whether base ids and thinking ids (same shape) are the same token: one's crossing begins with the other."""
        return (self.to_thinking(base) == thinking) | (self.to_base(thinking) == base)

    def agreeing(self, token: int) -> list[int]:
        """The thinking ids that `agree` with a base id."""
        return sorted({*self.cross(token)[:1], *self._to_base.sources.get(token, ())})

    def written_with(self, token: int) -> list[int]:
        """The base ids whose crossings begin with a thinking id."""
        return self._to_thinking.sources.get(token, [])


def _crossings(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Every source id that crosses, with its target ids."""
    crossings: dict[int, Crossing] = {}
    if source.ids == target.ids:
        crossings.update((index, (index,)) for index in source.ids.values())
    else:
        crossings = _ordinary(source, target) | _special(source, target)
    if source.pad is not None and target.pad is not None and source.pad not in crossings:
        crossings[source.pad] = (target.pad,)
    if source.end is not None and target.end is not None:
        crossings[source.end] = (target.end,)
    return crossings


def _ordinary(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Tokens that stand for text: the target's token for the same text, or how it writes that text."""
    alike = source.spell is target.spell
    crossings: dict[int, Crossing] = {}
    for name, index in source.ids.items():
        if index in source.special:
            continue
        namesake = target.ids.get(name)
        # Mostly the name is enough: the bytes need not be spelled out.
        if namesake is not None and namesake not in target.special:
            unadded = alike and name not in source.added and name not in target.added
            if unadded or source.content(name) == target.content(name):
                crossings[index] = (namesake,)
                continue
        content = source.content(name)
        twin = target.by_content.get(content)
        if crossing := (twin,) if twin is not None else target.write(content):
            crossings[index] = crossing
    return crossings


def _special(source: Vocabulary, target: Vocabulary) -> dict[int, Crossing]:
    """Added tokens: by string, or, in related vocabularies, by id where neither side has the other's string."""
    same = sum(target.ids.get(name) == index for name, index in source.ids.items())
    related = 2 * same > len(source.ids)
    free = {index for name, index in target.added.items() if related and name not in source.ids}
    crossings: dict[int, Crossing] = {}
    for name, index in source.added.items():
        if name in target.ids:
            crossings[index] = (target.ids[name],)
        elif index in free:
            crossings[index] = (index,)
    return crossings


class _Table:
    """The crossings of one tokenizer's ids, and their first ids as a tensor that stays on the device it is used on."""

    def __init__(self, crossings: dict[int, Crossing]) -> None:
        self.crossings = crossings
        self._first = torch.full((max(crossings, default=-1) + 1,), -1, dtype=torch.int64)
        if crossings:
            self._first[torch.tensor(list(crossings))] = torch.tensor([ids[0] for ids in crossings.values()])

    @cached_property
    def sources(self) -> dict[int, list[int]]:
        """For each target id, the ids whose crossings begin with it."""
        sources: dict[int, list[int]] = {}
        for index, ids in self.crossings.items():
            sources.setdefault(ids[0], []).append(index)
        return sources

    def look_up(self, ids: Tensor) -> Tensor:
        self._first = self._first.to(ids.device)
        inside = (ids >= 0) & (ids < len(self._first))
        return torch.where(inside, self._first[ids.clamp(0, len(self._first) - 1)], -1)
