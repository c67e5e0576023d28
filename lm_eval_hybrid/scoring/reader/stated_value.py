"""The value that a sentence states: of all numbers and expressions in it, the one that answers the question."""

import re
from dataclasses import dataclass

from lm_eval_hybrid.scoring.reader.question import Question, stems
from lm_eval_hybrid.scoring.reader.sentences import clauses

# What a value is worth because the question did not give it, or because it is a result, and what it costs that its
# clause gives a reason; as shares of the asked words.
NEW, _RESULT, _REASON = 0.3, 0.15, 0.4

_CLOCK = r"\d{1,2}:\d\d(?: ?[ap]m\b| ?[ap]\. ?m\.| ?[AP]M\b)?"
_DIGITS = rf"{_CLOCK}|\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d{{1,3}}(?: \d{{3}})+(?![\d/])|\d+(?:\.\d+)?|\.\d+"
_MATRIX = r"\\begin\{[a-z]*matrix\}.*?\\end\{[a-z]*matrix\}"
_FUNCTION = r"(?<![A-Za-z'])(?:sqrt|exp|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
# Mathematical signs, and the replacement character of one that was cut in the middle of its bytes.
_SIGN = "[-+*/^=\u00d7÷·√π()\\[\\]{}|<>≤≥±∞\u222a∈°%!_$≈\ufffd]"
_TOKEN = (
    rf"(?:{_MATRIX}|\\(?:[a-zA-Z]+|[{{}}%$,!; ])|{_DIGITS}|{_FUNCTION}|(?<![A-Za-z'&])[A-Za-z](?![A-Za-z'&])|{_SIGN}"
    "|,(?=\\s?[-\\d\\\\(∞\ufffd])|(?<=\\d) ?: ?(?=\\d))"
)
_SPAN = r"\\\(.*?\\\)|\\\[.*?\\\]|\$\$.*?\$\$|(?<![\\\w])\$(?=[^\s$])(?:[^$]*?[^\s\\$])?\$(?!\d)"
_RUN = re.compile(rf"(?P<span>{_SPAN})|(?P<run>{_TOKEN}(?:\s?{_TOKEN})*)")
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_VALUED = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]\s*[-+*/^=(]|[π√∞]|^[a-zA-Z]$")
_EQUALS = re.compile(r"(?<![\\<>!:])=(?!=)|\\equiv(?![a-z])|≡")
_NUMBER = re.compile(r"[-\\$%\s]*([\d,. ]*\d)\s*(?:\\?%|\^?\s*\\circ|°)?[\\$.]*")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_NAME = re.compile(r"\\?[a-zA-Z](?:_\{?\w\}?)?|\\(?:begin|end|angle|triangle|alpha|theta)\b.{0,12}")
_LEFT_SIDE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()]*\))?")
_RELATION = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt)(?:q|qslant)?(?![a-z])")

_GIVES_REASON = re.compile(r"(?:since|because|as|if|when|where|given|while)\b", re.IGNORECASE)
_SUPPOSED = re.compile(r"\b(?:when|where|if|for|since|let|test|try|suppose|assume|consider)$", re.IGNORECASE)
_FILLER = (
    "exactly|approximately|about|only|indeed|therefore|thus|also|the|an?|value|number|pair|ordered|just|simply|now|then"
    "|:"
)
_PREDICATE = re.compile(
    r"(?:\b(?:is|are|was|were|be|being|becomes?|equals?|totals?|equal to|total of)\b|:)" + rf"(?:\s*(?:{_FILLER}))*\s*$"
)
_JOINT = re.compile(r"\s*(?:(,\s*or\b)|,|,?\s*\b(?:and|or)\b)\s*")


@dataclass(frozen=True)
class Value:
    """A number or expression, as it is written.

    Attributes:
        new: whether the question did not give it.
        result: whether it follows `=` or words to that effect.
    """

    text: str
    new: bool
    result: bool = False


def stated(sentence: str, question: Question) -> tuple[float, Value] | None:
    """The value of the clause that answers the question best, and the share of asked words in that clause."""
    best: tuple[float, float, Value] | None = None
    for clause in clauses(sentence):
        found = value(clause, question)
        if found is None:
            continue
        match = question.match(clause)
        worth = match + NEW * found.new + _RESULT * found.result - _REASON * (_GIVES_REASON.match(clause) is not None)
        if best is None or worth > best[0]:
            best = worth, match, found
    return best[1:] if best else None


def value(clause: str, question: Question) -> Value | None:
    """The number or expression that a clause states, as it is written there; None where it has none.

    A value after `=` counts before one after `is` and the like, and that before others; a value that the question did
    not give counts before one that it gave. Among equals the last counts, or the first where little speaks for them.
    """
    found: list[tuple[float, Value]] = []
    end = 0
    for run in _RUN.finditer(clause):
        each = _weighed(run, clause, question)
        if each is None:
            continue
        joint = _JOINT.fullmatch(clause, end, run.start())
        if found and joint and _alike(found[-1][1].text, each[1].text, question):
            (weight, first), (other, second) = found.pop(), each
            text = _joined(first.text, second.text, joint[1] is not None and not question.several)
            each = (max(weight, other), Value(text, first.new or second.new))
        found.append(each)
        end = run.end()
    if not found:
        return None
    best = max(weight for weight, _ in found)
    equal = [each for weight, each in found if weight == best]
    return equal[0 if question.text and best < 3 else -1]


def _alike(first: str, second: str, question: Question) -> bool:
    """Whether two values that `and`, `or` or a comma joins are one answer: of one kind, or of names in the question."""
    names = [text.partition("=")[0].strip() if "=" in text else "" for text in (first, second)]
    if names == ["", ""]:
        kinds = [(_LETTER.search(text) is None, text[0] == "(", "$" in text) for text in (first, second)]
        return kinds[0] == kinds[1]
    return "" not in names and (names[0] == names[1] or stems(" ".join(names)) <= question.words)


def _joined(first: str, second: str, restated: bool) -> str:
    if first.isdigit() and "/" in second:
        return f"{first} and {second}"  # 137 and 1/2
    restated = restated and "," not in first and not _RELATION.search(first)
    return second if restated else f"{first}, {second}"  # restated: 1 1/4, or 1.25


def _weighed(run: re.Match[str], clause: str, question: Question) -> tuple[float, Value] | None:
    before, after = clause[: run.start()].rstrip("* "), clause[run.end() :]
    text = _undelimited(run.group()) if run["span"] else _balanced(run.group().strip(" ,*/+=≈"))
    if not _VALUED.search(text) or _NAME.fullmatch(text) or text.startswith("^"):
        return None
    said = _PREDICATE.search(before)
    sides = [side.strip() for side in _EQUALS.split(text)]
    last = _balanced(sides[-1] or sides[0])
    number = _NUMBER.fullmatch(last)
    if number:
        new = _new_number(text, last, re.sub("[, ]", "", number[1]), question)
    else:
        new = _new_expression(text, sides, question)
    result = len(sides) > 1 or run.group().lstrip("$\\([* ").startswith(("=", "≈")) or before.endswith(("=", "≈"))
    weight = 1.5 * new + 3.0 * result
    if said:
        weight += 1 if before.endswith(":") else 2
    weight += clause[: run.start()].endswith("**") and after.startswith("**")
    weight -= 2 * (_SUPPOSED.search(before) is not None or _RELATION.search(text) is not None)
    return weight, Value(text if len(sides) == 2 and _LETTER.search(sides[0]) else last, new, result)


def _new_number(text: str, last: str, digits: str, question: Question) -> bool:
    if "=" in text and "".join(text.split()) in question.tight:
        return False
    return digits not in question.given or (last.startswith("-") and f"-{digits}" not in question.tight)


def _new_expression(text: str, sides: list[str], question: Question) -> bool:
    """Whether an expression is solved for something, and not in the question."""
    left = sides[0] if len(sides) > 1 else ""
    unsolved = _LETTER.search(left) and not _LEFT_SIDE.fullmatch(left) and "".join(left.split()) not in question.tight
    return "".join(text.split()) not in question.tight and not unsolved and not _RELATION.search(text)


def _undelimited(span: str) -> str:
    start, end = next(delimiters for delimiters in _DELIMITERS if span.startswith(delimiters[0]))
    return span[len(start) : -len(end)].strip()


def _balanced(text: str) -> str:
    """A text without closing brackets at its end that nothing opens, and without an unclosed one at its start."""
    for opened, closed in (("([", ")]"), ("{", "}")):
        extra = sum(text.count(sign) for sign in opened) - sum(text.count(sign) for sign in closed)
        while extra < 0 and text[-1:] in closed and not text.endswith("\\" + text[-1:]):
            text, extra = text[:-1].rstrip(), extra + 1
        if extra > 0 and text[:1] in opened:
            text = text[1:].lstrip()
    return text.strip()
