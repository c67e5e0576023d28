"""Which words sentences have, as `figures.told` asks."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

WORDS = 500  # asked for at most
HEARD = 0.01  # share of the learned sentences that must have a word for it to be asked for
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


def said(learned: Sequence[str], held_out: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which of the learned sentences' most frequent words the sentences have: [m, w] and [h, w] float32, 0 or 1.

    A sign is a word, too, and all numbers are one. Of equally frequent words, that one comes first which is met first.
    """
    sets = [_words(sentence) for sentence in learned]
    often = Counter(word for words in sets for word in words).most_common(WORDS)
    asked = [word for word, count in often if count >= max(2, HEARD * len(sets))]
    return _has(sets, asked), _has([_words(sentence) for sentence in held_out], asked)


def _words(sentence: str) -> dict[str, None]:
    """In the order of the sentence: that of a set would differ from run to run."""
    return dict.fromkeys("0" if word.isdigit() else word.lower() for word in _WORD.findall(sentence))


def _has(sentences: Sequence[dict[str, None]], asked: Sequence[str]) -> Tensor:
    table = [[float(word in words) for word in asked] for words in sentences]
    return torch.tensor(table).reshape(len(sentences), len(asked))
