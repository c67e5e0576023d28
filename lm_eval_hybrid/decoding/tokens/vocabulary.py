"""What a tokenizer's tokens stand for, as bytes: the common ground of two vocabularies."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def _alphabet() -> dict[int, str]:
    """GPT-2's characters for bytes, as a translation to the characters of these bytes.

    Printable ones stand for themselves, the rest for the first beyond 255. What they stand for elsewhere translates to
    a character that is no byte.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return dict.fromkeys(others, "\uffff") | {256 + i: chr(byte) for i, byte in enumerate(others)}


_BYTES = _alphabet()


class Vocabulary:
    """A tokenizer's tokens.

    Attributes:
        ids: id of every token, by its string.
        special: ids that stand for no text.
        added: strings of tokens that were added to the vocabulary, special ones included; each is its own text.
        spell: the bytes of a token that was not added, from its string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.ids: dict[str, int] = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        self.special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.added = {str(token): index for index, token in added.items()}
        self.spell = _speller(tokenizer)
        self.pad: int | None = tokenizer.pad_token_id
        self.end: int | None = tokenizer.eos_token_id

    def content(self, name: str) -> bytes:
        """The bytes that an ordinary token stands for."""
        return name.encode() if name in self.added else self.spell(name)

    @cached_property
    def by_content(self) -> dict[bytes, int]:
        """The ordinary token for what it stands for; of several the first, but a byte's only where it must be."""
        ordinary = [(_is_byte(name), index, name) for name, index in self.ids.items() if index not in self.special]
        return {self.content(name): index for _, index, name in sorted(ordinary, reverse=True)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.by_content), default=0)

    @cached_property
    def names(self) -> dict[int, str]:
        """The string of every id."""
        return {index: name for name, index in self.ids.items()}

    def write(self, content: bytes) -> tuple[int, ...]:
        """Ids that stand for some bytes; none where there are none for them.

        As the tokenizer writes the text that they are; else (they are part of a character, or the tokenizer begins
        every text with a space) always the longest token that the rest begins with.
        """
        try:
            ids = self._tokenizer.encode(content.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            ids = []
        ordinary = all(index not in self.special for index in ids)
        if ids and ordinary and b"".join(self.content(self.names[index]) for index in ids) == content:
            return tuple(ids)
        found: list[int] = []
        while content:
            sizes = range(min(len(content), self._longest), 0, -1)
            size = next((size for size in sizes if content[:size] in self.by_content), 0)
            if not size:
                return ()
            found.append(self.by_content[content[:size]])
            content = content[size:]
        return tuple(found)


def _speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    kinds = {} if decoder is None else dict(_kinds(json.loads(decoder.__getstate__())))
    if "ByteLevel" in kinds:
        return _byte_level
    if "Metaspace" in kinds or "ByteFallback" in kinds or kinds.get("Replace") == _SPACE:
        return _sentencepiece
    return str.encode


def _kinds(decoder: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The kind of a decoder and of those in it, each with the string that it replaces, if any."""
    yield decoder.get("type", ""), (decoder.get("pattern") or {}).get("String")
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)


def _byte_level(name: str) -> bytes:
    try:
        return name.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()  # plain text in a vocabulary of bytes


def _sentencepiece(name: str) -> bytes:
    return bytes([int(name[3:5], 16)]) if _is_byte(name) else name.replace(_SPACE, " ").encode()


def _is_byte(name: str) -> bool:
    """Whether SentencePiece means a byte, such as <0x0A>."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
