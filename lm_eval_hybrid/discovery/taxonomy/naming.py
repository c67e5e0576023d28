"""Names for behaviors found without labels: a judge's, or words that their sentences open with or are rich in."""

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Behavior

if TYPE_CHECKING:
    from lm_eval_hybrid.discovery.taxonomy.grading import Grades

EXAMPLES = 3
KEYWORDS = 5
TITLE = 3  # keywords in a title
LONGEST = 60  # characters of a key
LONGEST_WORD = 24
_WORD = re.compile(r"(?<![\\A-Za-z'’])[A-Za-z]+(?:['’][A-Za-z]+)*")  # noqa: RUF001  (no LaTeX command: \frac)
log = logging.getLogger(__name__)


def name(sentences: Sequence[str], codes: Tensor, grades: "Grades | None" = None) -> tuple[Behavior, ...]:
    """One behavior for each latent that is the strongest for some sentence, in the latents' order.

    It has the title and the description that a judge gave, where there are grades and they name it; else it is named
    after the words that most of its sentences open with, else after those that tell them from the others.

    Args:
        codes: [sentences, latents], how strongly each latent answers to each sentence.
        grades: of these latents as categories.
    """
    strongest = codes.argmax(-1)
    found = strongest.unique().tolist()
    if len(found) < codes.shape[1]:
        silent = [str(latent) for latent in range(codes.shape[1]) if latent not in set(found)]
        log.warning("latents without sentences get no behavior: %s", ", ".join(silent))
    rich = keywords(sentences, strongest, TITLE)
    judged = {} if grades is None else _judged(grades)
    behaviors: list[Behavior] = []
    for latent in found:
        texts = [sentences[i].strip() for i in (strongest == latent).nonzero()[:, 0].tolist()]
        share = f"{len(texts) / len(sentences):.1%} of the sentences"
        if latent in judged:
            title, description = judged[latent][0], f"{judged[latent][1]} ({share})"
        else:
            title, source = _title(texts, rich[latent])
            description = f"{share}; {source}."
        key = _key(title, latent, {behavior.key for behavior in behaviors})
        behaviors.append(
            Behavior(
                key=key,
                latent=latent,
                title=title or f"Latent {latent}",
                description=description,
                examples=exemplars(sentences, codes, latent, EXAMPLES),
                tensor=f"vector.{key}",
            )
        )
    return tuple(behaviors)


def exemplars(sentences: Sequence[str], codes: Tensor, latent: int, count: int) -> tuple[str, ...]:
    """Up to `count` different sentences of those whose strongest latent this is, the strongest first.

    Args:
        codes: [sentences, latents].
    """
    members = (codes.argmax(-1) == latent).nonzero()[:, 0]
    order = members[torch.argsort(codes[members, latent], descending=True, stable=True)].tolist()
    return tuple(dict.fromkeys(sentences[i].strip() for i in order))[:count]


def keywords(sentences: Sequence[str], categories: Tensor, count: int = KEYWORDS) -> dict[int, tuple[str, ...]]:
    """The words that tell a category's sentences from the others', by class TF-IDF; the best first.

    A word's weight in a category is sqrt(tf) log(1 + a / f): tf is how often it occurs there, f how often anywhere, and
    a the mean number of words in a category (Grootendorst, BERTopic, arXiv 2203.05794, section 3.3; the root, as in its
    `reduce_frequent_words`, or articles would lead everywhere). Only words that are as frequent there as overall, or
    more, are its keywords.

    Args:
        categories: [sentences] int64.
    """
    said: dict[int, Counter[str]] = {category: Counter() for category in categories.unique().tolist()}
    for sentence, category in zip(sentences, categories.tolist(), strict=True):
        said[category].update(word.lower() for word in _words(sentence))
    anywhere = sum(said.values(), Counter[str]())
    words = anywhere.total()
    mean = words / max(1, len(said))

    def best(here: Counter[str]) -> tuple[str, ...]:
        size = here.total()
        weight = {
            word: math.sqrt(often) * math.log(1 + mean / anywhere[word])
            for word, often in here.items()
            if often * words >= anywhere[word] * size
        }
        return tuple(sorted(weight, key=lambda word: (-weight[word], word))[:count])

    return {category: best(here) for category, here in said.items()}


def _judged(grades: "Grades") -> dict[int, tuple[str, str]]:
    """Title and description by category, of those that the judge has named."""
    named = zip(grades.categories, grades.titles, grades.descriptions, strict=True)
    return {category: (title, description) for category, title, description in named if title}


def _title(texts: Sequence[str], rich: Sequence[str]) -> tuple[str, str]:
    """A title in words of the sentences, "" where they have none, and where the words are from."""
    opening = _opening(texts)
    if opening:
        return " ".join(opening).capitalize(), "named after the words that most of them open with"
    if opening is None and rich:
        return " ".join(rich).capitalize(), "named after the words that tell them from the others"
    return "", "most of them have no words"


def _opening(texts: Sequence[str]) -> tuple[str, ...] | None:
    """The first two words of most texts, or the first; () where most have no words, None where most open otherwise."""
    words = [tuple(_words(text)[:2]) for text in texts]
    for openings in (words, [pair[:1] for pair in words]):
        opening, count = Counter(openings).most_common(1)[0]
        if 2 * count > len(texts):
            return opening
    return None


def _words(text: str) -> list[str]:
    return [word[:LONGEST_WORD] for word in _WORD.findall(text)]


def _key(title: str, latent: int, taken: set[str]) -> str:
    """A title as a key that no other behavior has; `latent-N` where it has no letter or digit that a key may have."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower().replace("'", "")
    key = re.sub(r"[^a-z0-9]+", "-", plain)[:LONGEST].strip("-")
    if not key or re.fullmatch(r"latent-[0-9]+", key):  # which belong to their latents
        key = f"latent-{latent}"
    return next(other for other in _variants(key, latent) if other not in taken)


def _variants(key: str, latent: int) -> Iterator[str]:
    yield key
    while True:
        key = f"{key}-{latent}"
        yield key
