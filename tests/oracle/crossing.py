"""The naive bridge between two tokenizers: which ids of the other model stand for a token of this one.

Written from the definition alone, with a table of every crossing made at the start. What the definition
leaves open is settled here as follows:
- a special token is one that `added_tokens_decoder` marks special; it stands for no bytes, so a text whose
  ids include one never counts as the same bytes;
- a special token may cross by its string, or by its id, to any token of that string, or to any added token;
- a token of a byte-level vocabulary with a character outside of the alphabet is its own UTF-8 text, as the
  ByteLevel decoder reads it;
- the pad's partner of last resort is the other pad, whatever else the other pad is used for.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

UNDERLINE = "\u2581"  # SentencePiece's mark of a space
FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's token of a byte


class OneVocabulary:
    """What stands in for a bridge where both models share their ids, or where one of them never runs."""

    def to_thinking(self, token: int) -> tuple[int, ...] | None:
        """The thinking model's ids of a base id; None where there are none."""
        return (token,)

    def to_base(self, token: int) -> tuple[int, ...] | None:
        """The base's ids of a thinking id; None where there are none."""
        return (token,)

    def crossing_base(self, logits: Tensor) -> Tensor:
        """The base's logits [vocab], -inf at ids that the thinking model cannot take."""
        return logits

    def crossing_thinking(self, logits: Tensor) -> Tensor:
        """The thinking model's logits [vocab], -inf at ids that the base cannot take."""
        return logits

    def first_thinking(self, token: int) -> int:
        """The thinking id whose probability is that of a base token: the first of its crossing."""
        return required(self.to_thinking(token), f"base token {token}")[0]

    def first_base(self, token: int) -> int:
        """The base id that is emitted for a thinking token: the first of its crossing."""
        return required(self.to_base(token), f"thinking token {token}")[0]

    def text_to_thinking(self, tokens: Sequence[int]) -> list[int]:
        """The thinking model's ids of emitted base tokens, each crossed by itself."""
        crossed = [required(self.to_thinking(token), f"base token {token}") for token in tokens]
        return [part for parts in crossed for part in parts]

    def agree(self, base_choice: int, thinking_choice: int) -> bool:
        """Whether a choice of the base and one of the thinking model (a thinking id) are the same token."""
        return self.first_thinking(base_choice) == thinking_choice or self.first_base(thinking_choice) == base_choice


class NaiveBridge(OneVocabulary):
    """Tokens of two tokenizers, each crossing to the other."""

    def __init__(self, base_tokenizer: Any, thinking_tokenizer: Any) -> None:
        base, thinking = Vocabulary(base_tokenizer), Vocabulary(thinking_tokenizer)
        self.thinking_of = {token: crossing(token, base, thinking) for token in base.strings}
        self.base_of = {token: crossing(token, thinking, base) for token in thinking.strings}

    def to_thinking(self, token: int) -> tuple[int, ...] | None:
        return self.thinking_of.get(token)

    def to_base(self, token: int) -> tuple[int, ...] | None:
        return self.base_of.get(token)

    def crossing_base(self, logits: Tensor) -> Tensor:
        return only_crossing(logits, self.to_thinking)

    def crossing_thinking(self, logits: Tensor) -> Tensor:
        return only_crossing(logits, self.to_base)


def bridge_of(tokenizer_pair: tuple[Any, Any] | None) -> OneVocabulary:
    """How tokens cross: as they are where there is no second tokenizer, or no second vocabulary."""
    if tokenizer_pair is None or tokenizer_pair[0].get_vocab() == tokenizer_pair[1].get_vocab():
        return OneVocabulary()
    return crossing_bridge(*tokenizer_pair)


@cache  # spelling out two vocabularies would be most of the time that a short answer takes
def crossing_bridge(base_tokenizer: Any, thinking_tokenizer: Any) -> NaiveBridge:
    """The bridge between two tokenizers, made once."""
    return NaiveBridge(base_tokenizer, thinking_tokenizer)


class Vocabulary:
    """One side of a bridge: what its ids are called, and the bytes that they stand for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.strings = {token: string for string, token in self.ids.items()}
        self.added = tokenizer.added_tokens_decoder
        self.bytes = bytes_of_tokens(tokenizer)
        self.spellings: dict[bytes, list[int]] = {}
        # <0x20> stands for a space too, but is not what a model says for it where it has another token.
        for token in sorted(self.bytes, key=lambda token: (self.strings[token].startswith("<0x"), token)):
            self.spellings.setdefault(self.bytes[token], []).append(token)

    def is_special(self, token: int) -> bool:
        """Whether a token is special, and stands for no bytes."""
        return token in self.added and self.added[token].special


def required(crossed: tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    """`crossed`, which must not be None."""
    if crossed is None:
        raise ValueError(f"{name} has no counterpart in the other vocabulary")
    return crossed


def only_crossing(logits: Tensor, cross: Callable[[int], tuple[int, ...] | None]) -> Tensor:
    """A copy of `logits` [vocab] with -inf at ids that do not cross, those beyond the tokenizer included."""
    crosses = torch.tensor([cross(token) is not None for token in range(len(logits))])
    return torch.where(crosses, logits, torch.full_like(logits, -torch.inf))


def crossing(token: int, source: Vocabulary, target: Vocabulary) -> tuple[int, ...] | None:
    """The ids of `target` for an id of `source`; None where there are none."""
    eos = target.tokenizer.eos_token_id
    if eos is not None and token == source.tokenizer.eos_token_id:
        return (eos,)
    found = special_crossing(token, source, target) if source.is_special(token) else None
    if found is None and token in source.bytes:
        found = bytes_crossing(source.strings[token], source.bytes[token], target)
    pad = target.tokenizer.pad_token_id
    if found is None and pad is not None and token == source.tokenizer.pad_token_id:
        return (pad,)
    return found


def special_crossing(token: int, source: Vocabulary, target: Vocabulary) -> tuple[int, ...] | None:
    """The token of the same string; else the added token of the same id, if each string has only one side.

    By id only where more than half of the ids have the same string on both sides.
    """
    string = source.strings[token]
    if string in target.ids:
        return (target.ids[string],)
    alike = [name for name, index in source.ids.items() if target.ids.get(name) == index]
    related = len(alike) > len(source.ids) / 2
    if related and token in target.added and target.strings[token] not in source.ids:
        return (token,)
    return None


def bytes_crossing(string: str, spelled: bytes, target: Vocabulary) -> tuple[int, ...] | None:
    """The ids of `target` that stand for the bytes of an ordinary token called `string`."""
    same = target.spellings.get(spelled, [])
    if same:
        return (target.ids[string],) if target.ids.get(string) in same else (same[0],)
    encoded = encoding(spelled, target)
    if encoded is not None:
        return encoded
    ids: list[int] = []
    while spelled:
        begun = [start for start in target.spellings if spelled.startswith(start)]
        if not begun:
            return None
        longest = max(begun, key=len)
        ids.append(target.spellings[longest][0])
        spelled = spelled[len(longest) :]
    return tuple(ids)


def encoding(spelled: bytes, target: Vocabulary) -> tuple[int, ...] | None:
    """What `target` itself makes of the text, if the bytes are one, and if its tokens stand for the same bytes."""
    try:
        text = spelled.decode("utf-8")
    except UnicodeDecodeError:
        return None
    ids = target.tokenizer.encode(text, add_special_tokens=False)
    if not ids or any(token not in target.bytes for token in ids):
        return None
    return tuple(ids) if b"".join(target.bytes[token] for token in ids) == spelled else None


def bytes_of_tokens(tokenizer: Any) -> dict[int, bytes]:
    """The bytes that each token stands for; special tokens are left out."""
    added, spell = tokenizer.added_tokens_decoder, speller(tokenizer)
    found = {}
    for string, token in tokenizer.get_vocab().items():
        if token not in added:
            found[token] = spell(string)
        elif not added[token].special:
            found[token] = string.encode()
    return found


def speller(tokenizer: Any) -> Callable[[str], bytes]:
    """How this tokenizer's ordinary tokens are read as bytes."""
    steps = decoder_steps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    if any(step["type"] == "ByteLevel" for step in steps):
        return byte_level_bytes
    if any(marks_spaces(step) for step in steps):
        return sentencepiece_bytes
    strings = tokenizer.get_vocab()
    if "<0x0A>" in strings and any(UNDERLINE in string for string in strings):
        return sentencepiece_bytes
    return str.encode


def decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A decoder of the tokenizers library as a flat list of its steps."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in decoder_steps(part)]
    return [decoder]


def marks_spaces(step: dict[str, Any]) -> bool:
    """Whether a decoder's step turns SentencePiece's mark into a space."""
    if step["type"] == "Replace":
        return step["pattern"] == {"String": UNDERLINE} and step["content"] == " "
    return step["type"] == "Metaspace"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's table: the byte of each character. Printable bytes are themselves, the others start at 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


ALPHABET = byte_alphabet()


def byte_level_bytes(string: str) -> bytes:
    """The bytes of a byte-level token."""
    if any(character not in ALPHABET for character in string):
        return string.encode()
    return bytes(ALPHABET[character] for character in string)


def sentencepiece_bytes(string: str) -> bytes:
    """The bytes of a SentencePiece token."""
    byte = FALLBACK.fullmatch(string)
    return bytes([int(byte[1], 16)]) if byte else string.replace(UNDERLINE, " ").encode()
