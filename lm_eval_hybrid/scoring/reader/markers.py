"""Answers that are marked: by a box, `####`, a tag, or the word `answer`."""

import re

from lm_eval_hybrid.scoring.reader.question import Question
from lm_eval_hybrid.scoring.reader.sentences import boxes, clauses
from lm_eval_hybrid.scoring.reader.stated_value import stated, value

_EMPTY = re.compile(r"(?:\\text\s*\{)?\s*(?:final )?(?:answer)?[\s.}_?]*", re.IGNORECASE)
_JOINT = re.compile(r"(?:\\q?quad|\\text|[\s$\\()\[\]{},;]|\b(?:and|or)\b|[a-zA-Z](?:_\d)?\s*=)*")
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
_VALUE_FIRST = re.compile(r"[-$\\(\[*\s]*(?:\d|\\frac|\\sqrt|\\pi|[a-zA-Z]\b\s*[=^+*/])")
# A letter among choices, plain, bold, in dollars or in parentheses.
_LETTER = re.compile(
    r"[\s*$]*(?:(?i:option|choice) )?[\s*$]*(?:\\(?:text|math)(?:bf|rm)?\{)?"
    r"(?:\\?\(\s*(?P<enclosed>[A-Z])\s*\\?\)|(?P<bare>[A-Z])(?=[\s*$}]*(?:[).:,]|$)))"
)
# An answer in words: a name with what is said of it, or a word or two.
_NAMED = re.compile(
    r"(?!\W*(?:The|This|That|It|We|There|To|If|In|So|Since|Let|For|As|I|You)\b)[\W_]*[A-Z]\w+(?:\W+\w+){,10}[\W_]*"
    r"|[\W_]*(?!\w+(?:ed|ing|ly)\b)[a-z]\w+(?: [a-z]\w+)?[.*\"'`\s]*"
)


def marked(sentence: str, question: Question) -> tuple[str, str] | None:
    """The answer that a sentence marks, and the words that are marked as such; None where it marks none."""
    hashes, tag = after_hashes(sentence) if "####" in sentence else None, _TAG.search(sentence)
    found = [
        boxed(sentence, question.several) if "box" in sentence else None,
        None if hashes is None or _HEADING.match(hashes[1]) else hashes,
        None if tag is None else (tag.start(), tag[1]),
    ]
    last = max(filter(None, found), default=None)
    if last is not None:
        return last[1], last[1]
    return None if _SUPPOSES.match(sentence) else _called(sentence, question)


def boxed(text: str, several: bool = False) -> tuple[int, str] | None:
    r"""Place and content of the last closed box of a text: `\boxed{}`, `\fbox{}`, `\boxed 5`; None where there is none.

    Boxes that only `and`, `or`, a comma or `x =` separates are one answer, their contents joined by commas; where
    `several` answers are expected, all boxes of the text are.
    """
    place, last_end = 0, 0
    found: list[str] = []
    for start, end, content in boxes(text):
        if _EMPTY.fullmatch(content):
            continue
        joined = found and (several or _JOINT.fullmatch(text, last_end, start))
        found = [*found, content] if joined else [content]
        place, last_end = start, end
    return (place, ", ".join(dict.fromkeys(found))) if found else None


def after_hashes(text: str) -> tuple[int, str] | None:
    """Place and content of the last line with `####` before its answer, as in GSM8K's solutions."""
    found = [each for each in _HASHES.finditer(text) if not each["answer"].rstrip().endswith(":")]
    return (found[-1].start(), found[-1]["answer"].strip()) if found else None


def _called(sentence: str, question: Question) -> tuple[str, str] | None:
    """What a sentence calls the answer, a letter among choices, a value or a few words; and all that it says there."""
    said = _ANSWER.search(sentence)
    if not said or _NO_ANSWER.match(said["rest"]):
        return None
    rest = said["rest"]
    letter = _LETTER.match(rest)
    if letter and (question.choices or not question.text):
        return (letter["enclosed"] or letter["bare"],) * 2
    first = value(f"is {clauses(rest)[0]}", question) if _VALUE_FIRST.match(rest) else None
    closest = (0.0, first) if first else stated(rest, question)
    if closest is not None:
        return closest[1].text, rest
    return (rest, rest) if _NAMED.fullmatch(rest) and not letter else None
