"""What a generated text answers to the question posed: the answer that it commits to last, before it runs on.

A text commits by a mark (a box, `####`), by saying that something is the answer, or by a sentence that concludes what was
asked. A text that ends by itself commits by its last sentence with a value at the latest; one that breaks off in the middle
of a derivation does not.
"""

import re
from dataclasses import dataclass

from lm_eval_hybrid.evaluation.asking import Ask, ask
from lm_eval_hybrid.evaluation.notation import plain, tight
from lm_eval_hybrid.evaluation.runon import headers
from lm_eval_hybrid.evaluation.sentences import broken, sentences, unbroken
from lm_eval_hybrid.evaluation.values import Value, clauses, value

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s{}$\\.,]+))")
_BRACE = re.compile(r"\\.|[{}]")
_JOIN = re.compile(r"[\s$\\()\[\],;]*(?:and|or|,|\\text\{ ?(?:and|or) ?\}|\\quad)?[\s$\\()\[\],;]*")
_HASHES = re.compile(r"(?<!#)####(?!#)\s*(?P<answer>\S.*)")
_HEADING = re.compile(r"^(?:step|solution|explanation|method|approach|part|case|conclusion|verification|summary|final|answer|\*\*)", re.IGNORECASE)
_ANSWER = re.compile(
    r"\b(?:answers?|option|choice)\b[^.:=,;]{0,60}?\s*(?:\bis\b|\bare\b|\bwas\b|\bbe\b|=|:)(?:\*\*|[:\s])*(?P<rest>\S.*)", re.IGNORECASE
)
_NO_ANSWER = re.compile(r"(?:not|in|a|an|incorrect|wrong|correct|right|given|to)\b(?!\s+\$)", re.IGNORECASE)
# An answer in words: a name with what is said of it, or a word or two.
_NAMED = re.compile(
    r"(?!(?:The|This|That|It|We|There|To|If|In|So|Since|Let|For|As|I|You)\b)[\W_]*[A-Z]\w+(?:\W+\w+){,10}[\W_]*"
    r"|[\W_]*(?!\w+(?:ed|ing|ly)\b)[a-z]\w+(?: [a-z]\w+)?[.*\"'`\s]*"
)
_VALUE_FIRST = re.compile(r"[-$\\(\[*\s]*(?:\d|\\frac|\\sqrt|\\pi|[a-zA-Z]\b\s*[=^+*/])")
_LETTER = re.compile(r"(?:option |choice )?\\?\(?(?:\\text\{)?\(?([A-Z])\)?(?:\}|\\?\)|[).:]|$)(?!\w)", re.IGNORECASE)
_IS_ANSWER = re.compile(r"(?P<rest>.*\S)\s+(?:is|are|as)\s+(?:thus |therefore |then )?(?:the|our|my) (?:final |correct )?answer\b", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|consequently|accordingly|in conclusion|in total|in summary|to summari[sz]e|finally|overall|altogether|"
    r"conclude|it follows|the (?:solutions?|results?)\b.{,40}?\b(?:is|are))\b|\\therefore|∴|^\W*So\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"(?:This|That|It|Which)\b(?:\s\w+)?\s+(?:is|equals|gives|simplifies to)\s+(?:\w+\s)?[-$\\\d(]")
_CORRECTS = re.compile(r"\b(?:however|actually|but|wait|correct(?:ed|ion)?|instead|mistake|error)\b", re.IGNORECASE)
_LEADS = re.compile(r"\b(?:so|this means|we (?:get|have|find|found|obtain))\b", re.IGNORECASE)
_NEW, _FITS = 0.3, 0.2  # what a value is worth that the question did not give; that is in the asked unit
_STUCK = 6  # sentences of one value at the end
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
        found = _read(text[:start], asked, cut if start == len(text) else False)
        if found is not None:
            return found
    return None


def _read(text: str, asked: Ask, cut: bool | None) -> Reading | None:
    off = broken(text) if cut is None else cut
    said = [each for each in sentences(unbroken(text) if off else text) if not _repeats(each, asked)]
    marked = [Reading(answer, each) for each in said if (answer := _marked(each, asked)) is not None]
    if marked:
        *_, former, last = [marked[-1], *marked][-2:]
        again = "box" in former.sentence and "box" not in last.sentence and not _CORRECTS.search(last.sentence)
        return former if again and said.index(last.sentence) - said.index(former.sentence) == 1 else last
    return (_stuck(said, asked) if off else None) or _conclusion(said, asked, off)


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
        letter = _LETTER.match(said["rest"])
        if letter and (asked.choices or not asked.question):
            return letter[1]
        first = value(clauses(said["rest"])[0], asked) if _VALUE_FIRST.match(said["rest"]) else None
        stated = (0.0, first) if first else _stated(said["rest"], asked)
        if stated is not None:
            return stated[1].text
        return said["rest"] if _NAMED.fullmatch(said["rest"]) and not letter else None
    said = _IS_ANSWER.search(sentence)
    stated = _stated(said["rest"], asked) if said else None
    return stated[1].text if stated else None


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


def _stated(sentence: str, asked: Ask) -> tuple[float, Value] | None:
    """How close the clause of a sentence that has a value is to what is asked, and the value; of several, the closest."""
    found = [(asked.match(each), stated) for each in clauses(sentence) if (stated := value(each, asked)) is not None]
    return max(found, key=lambda each: each[0] + _NEW * each[1].new + _FITS * each[1].fits) if found else None


def _stuck(said: list[str], asked: Ask) -> Reading | None:
    """The one new value that the last sentences of a text say over and over."""
    last = said[-_STUCK:]
    stated = [_stated(sentence, asked) for sentence in last]
    values = {tight(plain(each[1].text)) if each and each[1].new else None for each in stated}
    if len(said) < _STUCK or len(values) != 1 or len(set(last)) > 2 or stated[-1] is None or None in values:
        return None
    return Reading(stated[-1][1].text, last[-1])


def _conclusion(said: list[str], asked: Ask, off: bool) -> Reading | None:
    """The value that most and best of the sentences conclude; the last one of those that are about as good."""
    found: dict[str, list[tuple[float, int, Reading]]] = {}
    before, closing = 0.0, None
    # What is said again and again until a text breaks off adds nothing.
    for place, sentence in enumerate(dict.fromkeys(said) if off else said):
        closest = _stated(sentence, asked)
        if closest is None:
            before = asked.match(sentence)
            continue
        match, stated = closest
        closing = Reading(stated.text, sentence) if stated.new else closing
        if _GOES_ON.match(sentence):
            match = max(match, before)
        before = asked.match(sentence)
        concludes = 0.35 if _CONCLUDES.search(sentence) else 0.15 if _LEADS.search(sentence) else 0.0
        if off and match < (0.2 if concludes == 0.35 else _ENOUGH) and not (concludes == 0.35 and sentence == said[-1]):
            continue
        if (off or match < _ENOUGH) and not (concludes or stated.new):
            continue
        weight = match + concludes + _NEW * stated.new + _FITS * stated.fits - 0.3 * (not stated.new and not concludes and (sentence != said[-1] or sentence[:4] == "This"))
        key = tight(plain(stated.text)).rpartition("=")[2]
        found.setdefault(key, []).append((weight, place, Reading(stated.text, sentence)))
    if not found:
        return None if off or closing is None else closing
    last = max(place for group in found.values() for _, place, _ in group)
    ranked = []
    for group in found.values():
        weight, place, reading = max(((w + 0.15 * (p == last and not off), p, r) for w, p, r in group), key=lambda each: each[:2])
        ranked.append((weight + 0.08 * min(len(group) - 1, 3), place, reading))
    best = max(weight for weight, _, _ in ranked)
    return max((place, reading.answer, reading) for weight, place, reading in ranked if weight >= best - 0.2)[2]
