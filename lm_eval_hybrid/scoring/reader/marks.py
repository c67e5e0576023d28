"""Answers that are marked as such: in a box, after `####`, in a tag, or by the word `answer`."""

import re

from lm_eval_hybrid.scoring.reader.asking import Ask
from lm_eval_hybrid.scoring.reader.clauses import clauses
from lm_eval_hybrid.scoring.reader.values import stated, value

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s{}$\\.,]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_EMPTY = re.compile(r"(?:\\text\s*\{)?\s*(?:final )?(?:answer)?[\s.}_?]*", re.IGNORECASE)
_JOIN = re.compile(r"[\s$\\()\[\],;]*(?:and|or|,|\\text\{ ?(?:and|or) ?\}|\\quad)?[\s$\\()\[\],;]*")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(?P<answer>\S[^\n]*)")
_TAG = re.compile(r"<answer>\s*([^<>]*[^<>\s])\s*</answer>", re.IGNORECASE)
_HEADING = re.compile(
    r"(?:step|solution|explanation|method|approach|part|case|conclusion|verification|summary|final|answer|\*\*)",
    re.IGNORECASE,
)
_SUPPOSES = re.compile(
    r"(?:if|when|to find|assum)|.*\b(?:check|verif|confirm)\w* (?:this|that|our|the|my) answer", re.IGNORECASE
)
_ANSWER = re.compile(
    r"\b(?:answers?|option|choice)\b[^.:=,;]{0,60}?\s*(?:\b(?:is|are|was|be)\b|=|:)(?:\*\*|[:\s])*(?P<rest>\S.*)",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(r"(?:not|in|a|an|incorrect|wrong|correct|right|given|to)\b(?!\s+\$)", re.IGNORECASE)
_IS_ANSWER = re.compile(
    r"(?P<rest>.*\S)\s+(?:is|are|as)\s+(?:thus |therefore |then )?(?:the|our|my) (?:final |correct )?answer\b",
    re.IGNORECASE,
)
_VALUE_FIRST = re.compile(r"[-$\\(\[*\s]*(?:\d|\\frac|\\sqrt|\\pi|[a-zA-Z]\b\s*[=^+*/])")
_LETTER = re.compile(
    r"(?:option |choice )?\\?\(?(?:\\text(?:bf)?\{)?\(?([A-Z])\)?(?:\}|\\?\)|[).:]|$)(?!\w)", re.IGNORECASE
)
# An answer in words: a name with what is said of it, or a word or two.
_NAMED = re.compile(
    r"(?!\W*(?:The|This|That|It|We|There|To|If|In|So|Since|Let|For|As|I|You)\b)[\W_]*[A-Z]\w+(?:\W+\w+){,10}[\W_]*"
    r"|[\W_]*(?!\w+(?:ed|ing|ly)\b)[a-z]\w+(?: [a-z]\w+)?[.*\"'`\s]*"
)


def marked(sentence: str, asked: Ask) -> str | None:
    """The answer that a sentence marks; None where it marks none."""
    hashes, tag = after_hashes(sentence) if "####" in sentence else None, _TAG.search(sentence)
    found = [
        boxed(sentence) if "box" in sentence else None,
        None if hashes is None or _HEADING.match(hashes[1]) else hashes,
        None if tag is None else (tag.start(), tag[1]),
    ]
    last = max(filter(None, found), default=None)
    if last is not None:
        return last[1]
    return None if _SUPPOSES.match(sentence) else _called(sentence, asked)


def boxed(text: str) -> tuple[int, str] | None:
    r"""Place and content of the last closed box of a text: `\boxed{}`, `\fbox{}`, `\boxed 5`; None where there is none.

    Boxes that only `and`, `or` or a comma parts are one answer, their contents parted by commas.
    """
    place, last_end = 0, 0
    found: list[str] = []
    for box in _BOX.finditer(text):
        end = box.end() if box["bare"] else _closing(text, box.end())
        if end is None:
            break  # nothing after it closes either
        content = box["bare"] or text[box.end() : end - 1].strip()
        if _EMPTY.fullmatch(content):
            continue
        joined = found and _JOIN.fullmatch(text, last_end, box.start())
        found = [*found, content] if joined else [content]
        place, last_end = box.start(), end
    return (place, ", ".join(dict.fromkeys(found))) if found else None


def after_hashes(text: str) -> tuple[int, str] | None:
    """Place and content of the last line with `####` before its answer, as GSM8K's solutions have it."""
    found = [each for each in _HASHES.finditer(text) if not each["answer"].rstrip().endswith(":")]
    return (found[-1].start(), found[-1]["answer"].strip()) if found else None


def _closing(text: str, start: int) -> int | None:
    """Where the brace closes that opens just before `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.end()
    return None


def _called(sentence: str, asked: Ask) -> str | None:
    """What a sentence calls the answer: its letter among choices, its value, or a few words."""
    lower = sentence.lower()
    if not any(word in lower for word in ("answer", "option", "choice")):
        return None
    said = _ANSWER.search(sentence)
    if said and not _NO_ANSWER.match(said["rest"]):
        rest = said["rest"]
        letter = _LETTER.match(rest)
        if letter and (asked.choices or not asked.question):
            return letter[1].upper()
        first = value(clauses(rest)[0], asked) if _VALUE_FIRST.match(rest) else None
        closest = (0.0, first) if first else stated(rest, asked)
        if closest is not None:
            return closest[1].text
        return rest if _NAMED.fullmatch(rest) and not letter else None
    said = _IS_ANSWER.search(sentence)
    found = value(clauses(said["rest"])[-1], asked) if said else None
    return found.text if found else None
