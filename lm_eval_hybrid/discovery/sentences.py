"""Sentences of a trace, as spans of its tokens."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

# A sentence ends after its closing marks where white space follows, or at a line's end; so 3.14 stays whole.
_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|\n+")


@dataclass(frozen=True)
class Sentence:
    """A sentence and its tokens: `ids[begin:end]` of the text it stands in."""

    text: str
    begin: int
    end: int


def split(text: str, token_ends: Sequence[int]) -> list[Sentence]:
    """The sentences of a text; white space before a sentence belongs to it.

    Args:
        text: the text.
        token_ends: where each of its tokens ends, as a character offset. A token belongs to the sentence it ends in.
    """
    ends = [match.end() for match in _END.finditer(text)] + [len(text)]
    owners = [bisect_left(ends, end) for end in token_ends]
    sentences = []
    for owner, tokens in groupby(range(len(owners)), key=owners.__getitem__):
        span = list(tokens)
        words = text[ends[owner - 1] if owner else 0 : ends[owner]]
        if words.strip():
            sentences.append(Sentence(words, span[0], span[-1] + 1))
    return sentences
