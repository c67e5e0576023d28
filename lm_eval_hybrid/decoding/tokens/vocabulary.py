"""The bytes that a tokenizer's tokens encode, which two vocabularies have in common."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def _alphabet() -> dict[int, str]:
    """The translation from GPT-2's characters for bytes to the characters with these code points.

    Printable bytes are written as themselves, the others as the characters from 256 on. A character that never stands
    for a byte translates to one beyond latin-1.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return dict.fromkeys(others, "\uffff") | {256 + i: chr(byte) for i, byte in enumerate(others)}


_BYTES = _alphabet()


class Vocabulary:
    """A tokenizer's tokens. An ordinary token is one that is not special.

    Attributes:
        ids: id of every token, by its string.
        special: ids that encode no text.
        added: ids of the tokens that were added to the vocabulary, special or not, by their strings, which are the
            text that they encode.
        spell: gives the bytes of a token that was not added, from its string.
        pad, end: ids of the padding and end-of-sequence tokens.
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
        """The bytes that an ordinary token encodes, from its string."""
        return name.encode() if name in self.added else self.spell(name)

    @cached_property
    def by_content(self) -> dict[bytes, int]:
        """The ordinary token for given bytes; of several the one with the smallest id, byte tokens last."""
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
        """Ordinary tokens that encode given bytes; empty if there are none.

        They are those of the tokenizer for this text. If it is no text, or if the tokenizer begins every text with a
        space, they are found by taking the longest token that the rest begins with.
        """
        try:
            ids = self._tokenizer.encode(content.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            ids = []
        ordinary = all(index not in self.special for index in ids)
        if ids and ordinary and b"".join(self.content(self.names[index]) for index in ids) == content:
            return tuple(ids)
        written: list[int] = []
        while content:
            sizes = range(min(len(content), self._longest), 0, -1)
            size = next((size for size in sizes if content[:size] in self.by_content), 0)
            if not size:
                return ()
            written.append(self.by_content[content[:size]])
            content = content[size:]
        return tuple(written)


def _speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    kinds = {} if decoder is None else dict(_kinds(json.loads(decoder.__getstate__())))
    if "ByteLevel" in kinds:
        return _byte_level
    if "Metaspace" in kinds or "ByteFallback" in kinds or kinds.get("Replace") == _SPACE:
        return _sentencepiece
    return str.encode


def _kinds(decoder: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The type of a decoder and of the decoders in it, each with the string that it replaces, if any."""
    yield decoder.get("type", ""), (decoder.get("pattern") or {}).get("String")
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)


def _byte_level(name: str) -> bytes:
    try:
        return name.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()  # not written in bytes


def _sentencepiece(name: str) -> bytes:
    return bytes([int(name[3:5], 16)]) if _is_byte(name) else name.replace(_SPACE, " ").encode()


def _is_byte(name: str) -> bool:
    """Whether a SentencePiece token is a byte, such as <0x0A>."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
