"""What a tokenizer's tokens stand for, as bytes: the common ground of two vocabularies."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of every token but the special ones, which stand for none."""
    spell = _speller(tokenizer)
    found = {index: spell(piece) for piece, index in tokenizer.get_vocab().items()}
    for index, token in tokenizer.added_tokens_decoder.items():
        found[index] = b"" if token.special else token.content.encode()
    for index in tokenizer.all_special_ids:
        found[index] = b""
    return {index: content for index, content in found.items() if content}


def _speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
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


def _byte_level(piece: str) -> bytes:
    table = _alphabet()
    if any(character not in table for character in piece):
        return piece.encode()  # a token that was added as plain text
    return bytes(table[character] for character in piece)


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest for the first beyond 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
