"""What a generated text answers to the question posed: the answer that it commits to last, before it runs on.

A text commits by a mark (a box, `####`), by saying that something is the answer, or by a sentence that concludes what was
asked. A text that ends by itself commits by its last sentence with a value at the latest; one that breaks off in the middle
of a derivation does not.
"""

import re
from dataclasses import dataclass

from lm_eval_hybrid.evaluation.asking import Ask, ask
from lm_eval_hybrid.evaluation.runon import headers
from lm_eval_hybrid.evaluation.sentences import broken, sentences, unbroken
from lm_eval_hybrid.evaluation.values import Value, clauses, value

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s{}$\\.,]+))")
_BRACE = re.compile(r"\\.|[{}]")
_JOIN = re.compile(r"[\s$\\()\[\],;]*(?:and|or|,|\\text\{ ?(?:and|or) ?\}|\\quad)?[\s$\\()\[\],;]*")
_HASHES = re.compile(r"(?<!#)####(?!#)\s*(?P<answer>\S.*)")
_HEADING = re.compile(r"^(?:step|solution|explanation|method|approach|part|case|conclusion|verification|summary|final|answer|\*\*)", re.IGNORECASE)
_ANSWER = re.compile(
    r"\banswers?\b[^.:=]{0,60}?\s*(?:\bis\b|\bare\b|\bwas\b|\bbe\b|=|:)(?:\*\*|[:\s])*(?P<rest>\S.*)", re.IGNORECASE
)
_NO_ANSWER = re.compile(r"(?:not|in|a|an|incorrect|wrong|correct|right|given|to)\b(?!\s+\$)", re.IGNORECASE)
_LETTER = re.compile(r"(?:option |choice )?\\?\(?(?:\\text\{)?\(?([A-Z])\)?(?:\}|\\?\)|[).:]|$)(?!\w)", re.IGNORECASE)
_IS_ANSWER = re.compile(r"(?P<rest>.*\S)\s+(?:is|are|as)\s+(?:thus |therefore |then )?(?:the|our|my) (?:final |correct )?answer\b", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|accordingly|in conclusion|in total|in summary|to summari[sz]e|finally|overall|altogether|conclude|"
    r"this means|(?:solutions?|results?) (?:is|are)|we (?:get|have|find|obtain)|it follows|∴|\\therefore)\b",
    re.IGNORECASE,
)
_STUCK = 3  # times the same at the end
_ENOUGH = 0.5  # of the asked words, for a conclusion in a text that broke off


@dataclass(frozen=True)
class Reading:
    """The answer of a text, as it stands there, and the sentence in which it stands."""

    answer: str
    sentence: str


def read(text: str, question: str | None = None, cut: bool | None = None) -> Reading | None:
    """The answer that `text`, thoughts aside, commits to; None where it commits to none.

    Args:
        question: the posed one, if known: it tells conclusions from what is said by the way.
        cut: whether a limit of length ended the text; None where nobody knows, and its end tells.
    """
    asked = ask(question)
    starts = headers(text)
    for start in [*starts, len(text)]:
        found = _read(text[:start], asked, cut)
        if found is not None:
            return found
    return None


def _read(text: str, asked: Ask, cut: bool | None) -> Reading | None:
    off = broken(text) if cut is None else cut
    said = [each for each in sentences(unbroken(text) if off else text) if not _repeats(each, asked)]
    if said and said[-1:] * _STUCK == said[-_STUCK:]:
        off = False  # it had nothing else to say
    marked = [Reading(answer, each) for each in said if (answer := _marked(each, asked)) is not None]
    if marked:
        return marked[-1]
    return _conclusion(said, asked, off)


def _repeats(sentence: str, asked: Ask) -> bool:
    """Whether a sentence asks, or says what the question said."""
    return sentence.rstrip("*\"' ").endswith("?") or (len(sentence) > 25 and sentence in asked.question)


def _marked(sentence: str, asked: Ask) -> str | None:
    """The answer in a box, after `####`, or said to be the answer."""
    boxes = _boxes(sentence)
    if boxes:
        return boxes
    hashes = _HASHES.search(sentence)
    if hashes and not _HEADING.match(hashes["answer"]) and not hashes["answer"].endswith(":"):
        return hashes["answer"].strip()
    if re.match(r"(?:if|when|to find|check|assum)", sentence, re.IGNORECASE):
        return None
    said = _ANSWER.search(sentence)
    if said and not _NO_ANSWER.match(said["rest"]):
        stated = _stated(said["rest"], asked)
        letter = _LETTER.match(said["rest"])
        if letter and (not asked.question or f"({letter[1]})" in asked.question):
            return letter[1]
        return stated.text if stated else said["rest"] if len(said["rest"].split()) < 7 and not letter else None
    said = _IS_ANSWER.search(sentence)
    stated = _stated(said["rest"], asked) if said else None
    return stated.text if stated else None


def _boxes(sentence: str) -> str | None:
    """What the last box of a sentence holds, with those before it that `and`, `or` or a comma joins to it."""
    found: list[str] = []
    last_end = 0
    for box in _BOX.finditer(sentence):
        end = box.end() if box["bare"] else _closing(sentence, box.end())
        content = "" if end is None else box["bare"] or sentence[box.end() : end - 1].strip()
        if end is None or not content or content.strip(".").lower() in ("", "answer", "\\text{answer}"):
            continue
        joined = found and _JOIN.fullmatch(sentence[last_end : box.start()])
        found = [*found, content] if joined else [content]
        last_end = end
    return ", ".join(dict.fromkeys(found)) if found else None


def _closing(text: str, start: int) -> int | None:
    """Where the brace closes that opens just before `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.end()
    return None


def _stated(sentence: str, asked: Ask) -> Value | None:
    """The value of the clause of a sentence that is closest to what is asked; the first of those alike."""
    found = [(asked.match(each), each) for each in clauses(sentence)]
    values = [(match, stated) for match, each in found if (stated := value(each, asked)) is not None]
    return max(values, key=lambda each: each[0])[1] if values else None


def _conclusion(said: list[str], asked: Ask, off: bool) -> Reading | None:
    """The answer of the last of the sentences that conclude best what is asked."""
    found: list[tuple[float, Reading]] = []
    for sentence in said:
        stated = _stated(sentence, asked)
        if stated is None:
            continue
        match = max(asked.match(clause) for clause in clauses(sentence))
        concludes = _CONCLUDES.search(sentence) is not None
        if match < _ENOUGH and (off or not (concludes or stated.new)):
            continue
        weight = match + 0.3 * concludes + 0.2 * stated.new + 0.2 * stated.fits
        found.append((weight, Reading(stated.text, sentence)))
    if not found:
        return None
    if not off:
        found[-1] = (found[-1][0] + 0.3, found[-1][1])
    best = max(weight for weight, _ in found)
    return [reading for weight, reading in found if weight >= best - 0.25][-1]
