"""What a judge is asked, and what its replies say: the texts are the templates in prompts/.

What stands in a prompt besides our own words is from outside: each sentence is one line, a JSON string or within a JSON
object, so none can end its place in the prompt, be taken for a line of ours, or hold a chat template's marks. What a
judge replies is from outside as well: no reply is guessed at, and a title that it gives is cleaned.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.thoughts import MARKS, thought
from lm_eval_hybrid.judging.templates import rendered

SENTENCE = 1000  # characters of a sentence that a judge sees, at most
TITLE = 60  # characters of a title that are kept
DESCRIPTION = 400
_PROMPTS = Path(__file__).parent / "prompts"
_READ = 20_000  # characters at the end of a reply in which its answer is looked for
_DECODER = json.JSONDecoder()
_YES = {True: True, False: False, "true": True, "false": False, "yes": True, "no": False}

Described = Sequence[tuple[str, str]]  # titles and descriptions of categories; they are numbered from 1


def title(sentences: Sequence[str]) -> str:
    """Asks what the sentences of a category have in common."""
    return _rendered("title", sentences=[_clipped(sentence) for sentence in sentences])


def consistency(described: Described, sentence: str) -> str:
    """Asks which of the categories a sentence is of."""
    return _rendered("consistency", categories=_numbered(described), sentence=_clipped(sentence))


def completeness(described: Described, sentence: str) -> str:
    """Asks whether any of the categories describes a sentence, and how well."""
    return _rendered("completeness", categories=_numbered(described), sentence=_clipped(sentence))


def independence(one: tuple[str, str], other: tuple[str, str]) -> str:
    """Asks how much the descriptions of two categories overlap."""
    return _rendered("independence", categories=_numbered((one, other)))


def titled(reply: str) -> tuple[str, str] | None:
    """The title and the description in a reply, fit for a terminal and a manifest; None where it has not both."""
    found = _answer(reply, "title")
    words = [found.get("title"), found.get("description")]
    if not all(isinstance(word, str) for word in words):
        return None
    cleaned = (_line(words[0].strip(" \t\n\"'`*#_"), TITLE), _line(words[1], DESCRIPTION))
    return cleaned if all(re.search(r"\w", word) for word in cleaned) else None


def chosen(reply: str, count: int) -> int | None:
    """The position, from 0, of the category that a reply names by its number from 1; None where there is no such."""
    number = _answer(reply, "category").get("category")
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,4}", number.strip()):
        number = int(number)
    return number - 1 if type(number) is int and 1 <= number <= count else None


def fits(reply: str) -> tuple[bool, float] | None:
    """Whether a sentence fits any category, and how well, from 0 to 10; None where a reply does not say both."""
    found = _answer(reply, "fits")
    said, confidence = found.get("fits"), _grade(found.get("confidence"))
    said = said.strip().lower() if isinstance(said, str) else said
    if confidence is None or not isinstance(said, (bool, str)) or said not in _YES:
        return None
    return _YES[said], confidence


def overlap(reply: str) -> float | None:
    """From 0 to 10; None where a reply does not say."""
    return _grade(_answer(reply, "overlap").get("overlap"))


def _answer(reply: str, key: str) -> Mapping[str, Any]:
    """The last JSON object with `key` that a reply holds after its thought, whatever stands around it; {} if none."""
    text = _said(reply)[-_READ:]
    found: Mapping[str, Any] = {}
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, at + 1
        if isinstance(value, dict) and key in value:
            found = value
        at = text.find("{", end)
    return found


def _said(reply: str) -> str:
    """A reply without the thought that it begins with: marks further on may be words of the answer."""
    thinking = thought(reply, unmarked="none")
    begins = reply.lstrip().startswith(tuple(opening for opening, _ in MARKS))
    if thinking is None or (thinking.begin and not begins):  # it begins at 0 where the prompt opened it
        return reply
    return reply[thinking.end :] if thinking.finished else ""


def _grade(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,4})?", value.strip()):
        value = float(value)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric and 0 <= value <= 10 else None  # which no NaN is


def _line(text: str, most: int) -> str:
    """Words as one line of at most `most` characters, all of them printable."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _clipped(sentence: str) -> str:
    text = sentence.strip()
    return text if len(text) <= SENTENCE else text[: SENTENCE - 1] + "…"


def _numbered(described: Described) -> list[dict[str, Any]]:
    # No key of these is one of an answer's, or a reply that repeats its prompt would be taken for one.
    return [
        {"number": number, "title": title, "description": description}
        for number, (title, description) in enumerate(described, 1)
    ]


def _rendered(name: str, **values: Any) -> str:
    return rendered(_PROMPTS / f"{name}.j2", **values)
