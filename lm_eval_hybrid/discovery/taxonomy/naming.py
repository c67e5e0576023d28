"""Names of the behaviors that a taxonomy's categories stand for: a judge's, or words of their sentences.

The questions to a judge are the templates in prompts/. Sentences and descriptions come from outside: each is one line
of JSON, so none can end its place in the prompt, pass for a line of ours, or contain the marks of a chat template.
Replies come from outside as well: no answer is guessed, and titles are cleaned.
"""

import json
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Behavior
from lm_eval_hybrid.common.thoughts import MARKS, thought
from lm_eval_hybrid.judging.templates import rendered

EXAMPLES = 3  # of each behavior
TITLE_KEYWORDS = 3
KEY_CHARACTERS = 60
WORD_CHARACTERS = 24
SENTENCE_CHARACTERS = 1000  # the most of a sentence that a judge sees
TITLE_CHARACTERS = 60
DESCRIPTION_CHARACTERS = 400
_REPLY_CHARACTERS = 20_000  # the end of a reply, in which its answer is looked for
_PROMPTS = Path(__file__).parent / "prompts"
_DECODER = json.JSONDecoder()
_WORD = re.compile(r"(?<![\\A-Za-z'’])[A-Za-z]+(?:['’][A-Za-z]+)*")  # noqa: RUF001  (no LaTeX command: \frac)
log = logging.getLogger(__name__)


def name(
    sentences: Sequence[str], codes: Tensor, titled: Mapping[int, tuple[str, str]] | None = None
) -> tuple[Behavior, ...]:
    """One behavior for each latent that is the strongest in some sentence, in the latents' order.

    Its title is the judge's, or else the words that most of its sentences open with, or else those that tell them from
    the others.

    Args:
        codes: [sentences, latents], the strength of each latent in each sentence.
        titled: a judge's title and description of some latents.
    """
    strongest = codes.argmax(-1)
    latents = strongest.unique().tolist()
    if len(latents) < codes.shape[1]:
        silent = [str(latent) for latent in range(codes.shape[1]) if latent not in set(latents)]
        log.warning("latents without sentences get no behavior: %s", ", ".join(silent))
    rich = keywords(sentences, strongest, TITLE_KEYWORDS)
    behaviors: list[Behavior] = []
    for latent in latents:
        texts = [sentences[i].strip() for i in (strongest == latent).nonzero()[:, 0].tolist()]
        share = f"{len(texts) / len(sentences):.1%} of the sentences"
        if titled and latent in titled:
            title, description = titled[latent]
            description = f"{description} ({share})"
        else:
            title, origin = _title(texts, rich[latent])
            description = f"{share}; {origin}."
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
    """Up to `count` different sentences whose strongest latent this is, the strongest first.

    Args:
        codes: [sentences, latents].
    """
    members = (codes.argmax(-1) == latent).nonzero()[:, 0]
    order = members[torch.argsort(codes[members, latent], descending=True, stable=True)].tolist()
    return tuple(dict.fromkeys(sentences[i].strip() for i in order))[:count]


def keywords(sentences: Sequence[str], categories: Tensor, count: int) -> dict[int, tuple[str, ...]]:
    """The words that tell a category's sentences from the others', by class TF-IDF, the best first.

    A word's weight in a category is sqrt(tf) log(1 + a / f), where tf is how often it occurs there, f how often in all,
    and a the mean number of words in a category (Grootendorst, BERTopic, arXiv 2203.05794, section 3.3; the root, as in
    its `reduce_frequent_words`, keeps articles from leading everywhere). Only words that are at least as frequent there
    as overall are keywords.

    Args:
        categories: [sentences] int64.
    """
    counts: dict[int, Counter[str]] = {category: Counter() for category in categories.unique().tolist()}
    for sentence, category in zip(sentences, categories.tolist(), strict=True):
        counts[category].update(word.lower() for word in _words(sentence))
    overall = sum(counts.values(), Counter[str]())
    words = overall.total()
    mean = words / max(1, len(counts))

    def best(own: Counter[str]) -> tuple[str, ...]:
        size = own.total()
        weight = {
            word: math.sqrt(count) * math.log(1 + mean / overall[word])
            for word, count in own.items()
            if count * words >= overall[word] * size
        }
        return tuple(sorted(weight, key=lambda word: (-weight[word], word))[:count])

    return {category: best(own) for category, own in counts.items()}


def _title(texts: Sequence[str], rich: Sequence[str]) -> tuple[str, str]:
    """A title made of the sentences' words, "" if they have none, and the origin of the words."""
    opening = _opening(texts)
    if opening:
        return " ".join(opening).capitalize(), "named after the words that most of them open with"
    if opening is None and rich:
        return " ".join(rich).capitalize(), "named after the words that tell them from the others"
    return "", "most of them have no words"


def _opening(texts: Sequence[str]) -> tuple[str, ...] | None:
    """The two words, or else the one, that most texts open with; () if most have no words, None if they differ."""
    words = [tuple(_words(text)[:2]) for text in texts]
    for openings in (words, [pair[:1] for pair in words]):
        opening, count = Counter(openings).most_common(1)[0]
        if 2 * count > len(texts):
            return opening
    return None


def _words(text: str) -> list[str]:
    return [word[:WORD_CHARACTERS] for word in _WORD.findall(text)]


def _key(title: str, latent: int, taken: set[str]) -> str:
    """A key for a title that no other behavior has: `latent-N` if the title has no letter or digit for a key."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower().replace("'", "")
    key = re.sub(r"[^a-z0-9]+", "-", plain)[:KEY_CHARACTERS].strip("-")
    if not key or re.fullmatch(r"latent-[0-9]+", key):  # a key reserved for the latent of that number
        key = f"latent-{latent}"
    while key in taken:
        key = f"{key}-{latent}"
    return key


def title_prompt(sentences: Sequence[str]) -> str:
    """Asks what the sentences of a category have in common."""
    return render_question("title", sentences=[clipped(sentence) for sentence in sentences])


def render_question(name: str, **values: Any) -> str:
    """The template NAME.j2 with these values."""
    return rendered(_PROMPTS / f"{name}.j2", **values)


def clipped(sentence: str) -> str:
    """A sentence of at most SENTENCE_CHARACTERS characters."""
    text = sentence.strip()
    return text if len(text) <= SENTENCE_CHARACTERS else text[: SENTENCE_CHARACTERS - 1] + "…"


def parse_title(reply: str) -> tuple[str, str] | None:
    """Title and description in a reply, fit for a terminal and a manifest; None if it does not have both."""
    answer = last_answer(reply, "title")
    title, description = answer.get("title"), answer.get("description")
    if not isinstance(title, str) or not isinstance(description, str):
        return None
    cleaned = _line(title.strip(" \t\n\"'`*#_"), TITLE_CHARACTERS), _line(description, DESCRIPTION_CHARACTERS)
    return cleaned if all(re.search(r"\w", text) for text in cleaned) else None


def last_answer(reply: str, key: str) -> Mapping[str, Any]:
    """The last JSON object with `key` after a reply's thought, with any text around it; {} if there is none."""
    text = _without_thought(reply)[-_REPLY_CHARACTERS:]
    answer: Mapping[str, Any] = {}
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, at + 1
        if isinstance(value, dict) and key in value:
            answer = value
        at = text.find("{", end)
    return answer


def _without_thought(reply: str) -> str:
    """A reply without the thought that it begins with: later marks of a thought may be words of the answer."""
    thinking = thought(reply, unmarked="none")
    begins = reply.lstrip().startswith(tuple(opening for opening, _ in MARKS))
    if thinking is None or (thinking.begin and not begins):  # begin is 0 if the prompt opened the thought
        return reply
    return reply[thinking.end :] if thinking.finished else ""


def _line(text: str, most: int) -> str:
    """Text as one line of at most `most` characters, all printable."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
