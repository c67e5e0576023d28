"""The value that a clause states: of all numbers and expressions in it, the one that answers what is asked."""

import re
from dataclasses import dataclass

from lm_eval_hybrid.scoring.reader.asking import Ask, stems
from lm_eval_hybrid.scoring.reader.clauses import clauses, gives_reason, gives_result

# What a clause is worth, in shares of the asked words that it might have: for a value that the question did not give,
# that has the asked unit, that is a result; and what it costs that it gives a reason.
NEW, FITS, _RESULT, _REASON = 0.3, 0.2, 0.15, 0.4
_LONG = 6  # characters of an expression that is no answer where the question has it

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d/])|\d+(?:\.\d+)?|\.\d+"
_FUNCTION = r"(?<![A-Za-z'])(?:sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
# Signs of mathematics; a sign that was cut in the middle of its bytes, too.
_SIGN = "[-+*/^=\u00d7÷·√π()\\[\\]{}|<>≤≥±∞\u222a∈°%!_$≈\ufffd]"
_TOKEN = (
    rf"(?:\\(?:[a-zA-Z]+|[{{}}%$,!; ])|{_DIGITS}|{_FUNCTION}|(?<![A-Za-z'&])[A-Za-z](?![A-Za-z'&])|{_SIGN}"
    "|,(?=\\s?[-\\d\\\\(∞\ufffd]))"
)
_SPAN = r"\\\(.*?\\\)|\\\[.*?\\\]|\$\$.*?\$\$|(?<![\\\w])\$(?=[^\s$])(?:[^$]*?[^\s\\$])?\$(?!\d)"
_RUN = re.compile(rf"(?P<span>{_SPAN})|(?P<run>{_TOKEN}(?:\s?{_TOKEN})*)")
_MARKS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_VALUED = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]\s*[-+*/^=(]|[π√∞]|^[a-zA-Z]$")
_EQUALS = re.compile(r"(?<![\\<>!:])=(?!=)|\\equiv(?![a-z])|≡")
_MODULUS = re.compile(r"\s*\(?\s*\\p?mod\s*(?:\{[^{}]*\}|\d+)\s*\)?")
_ARROW = r"\\(?:Rightarrow|Longrightarrow|implies|iff|Leftrightarrow|therefore)(?![a-zA-Z])"
_IMPLIES = re.compile(rf"(?:\\q?quad|\s)*{_ARROW}(?:\\q?quad|\s)*|⇒|=>")
_NUMBER = re.compile(r"[-\\$%\s]*([\d,. ]*\d)\s*(?:\\?%|\^?\s*\\circ|°)?[\\$.]*")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_NAME = re.compile(r"\\?[a-zA-Z](?:_\{?\w\}?)?|\\(?:begin|end|angle|triangle|alpha|theta)\b.{0,12}")
_LEFT = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()]*\))?")
_RELATION = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt)(?:q|qslant)?(?![a-z])")
_STRAY = re.compile(r"^(?:[aAI]\s+)+|^x\s+(?=\d)|\s+[aAI]$")
_DANGLING = re.compile("^[,*/+\u00d7÷·=≈\\s]+|^-\\s+|[\\s,*/+\u00d7÷·=≈(\\[{$-]+$")

_SUPPOSED = re.compile(r"\b(?:when|where|if|for|since|let|with|test|try|suppose|assume|consider)$", re.IGNORECASE)
_FILLER = (
    "exactly|approximately|about|only|indeed|therefore|thus|also|the|an?|value|number|pair|ordered|just|simply|now|then"
    "|:"
)
_PREDICATE = re.compile(
    r"(?:\b(?:is|are|was|were|be|being|becomes?|equals?|totals?|equal to|total of)\b|:)" + rf"(?:\s*(?:{_FILLER}))*\s*$"
)
_SUBJECT = re.compile(r"\W*(?:is|are|was|will be)\s+(?:the|how|what)\b")
_JOINT = re.compile(r"\s*(?:(,\s*or\b)|,|,?\s*\b(?:and|or)\b)\s*")
_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELLED = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Value:
    """A number or expression, as it is written.

    Attributes:
        new: whether the question did not give it.
        fits: whether it is in the unit that is asked for.
        result: whether `=` or words to that effect say that it is one.
    """

    text: str
    new: bool
    fits: bool
    result: bool = False


def stated(sentence: str, asked: Ask) -> tuple[float, Value] | None:
    """The value of the clause of a sentence that most answers what is asked, and the share of asked words there."""
    best: tuple[float, float, Value] | None = None
    for clause in clauses(sentence):
        each = value(clause, asked)
        if each is None:
            continue
        match = asked.match(clause)
        worth = match + NEW * each.new + FITS * each.fits + _RESULT * (each.result + gives_result(clause))
        worth -= _REASON * gives_reason(clause)
        if best is None or worth > best[0]:
            best = worth, match, each
    return best[1:] if best else None


def value(clause: str, asked: Ask) -> Value | None:
    """The number or expression that `clause` states, as it is written there; None where there is none.

    What follows `=` counts before what follows `is` and the like, and that before others; what is in the asked unit,
    and what the question did not give, before what is not. Of those alike the first counts, or, where nobody knows what
    is asked, the last.
    """
    found: list[tuple[float, Value]] = []
    end = 0
    for run in _RUN.finditer(clause):
        each = _weighed(run, clause, asked)
        if each is None:
            continue
        joint = _JOINT.fullmatch(clause, end, run.start())
        if found and joint and _alike(found[-1][1].text, each[1].text, asked):
            (weight, first), (other, second) = found.pop(), each
            text = _joined(first.text, second.text, joint[1] is not None and not asked.several)
            each = (max(weight, other), Value(text, first.new or second.new, second.fits))
        found.append(each)
        end = run.end()
    if not asked.question:
        found.reverse()
    return max(found, key=lambda each: each[0])[1] if found else _spelled(clause, asked)


def _alike(first: str, second: str, asked: Ask) -> bool:
    """Whether two values that `and`, `or` or a comma joins are one answer: of one kind, or of names that are asked."""
    names = [text.partition("=")[0].strip() if "=" in text else "" for text in (first, second)]
    if names == ["", ""]:
        kinds = [(_LETTER.search(text) is None, text[0] == "(", "$" in text) for text in (first, second)]
        return kinds[0] == kinds[1]
    return "" not in names and (names[0] == names[1] or stems(" ".join(names)) <= asked.words)


def _joined(first: str, second: str, perhaps_again: bool) -> str:
    if first.isdigit() and "/" in second:
        return f"{first} and {second}"  # 137 and 1/2
    again = perhaps_again and "," not in first and not _RELATION.search(first)
    return second if again else f"{first}, {second}"  # again: 1 1/4, or 1.25


def _weighed(run: re.Match[str], clause: str, asked: Ask) -> tuple[float, Value] | None:
    before, after = clause[: run.start()].rstrip("* "), clause[run.end() :]
    text = _unmarked(run.group()) if run["span"] else _trimmed(run.group())
    if not _VALUED.search(text) or _NAME.fullmatch(text):
        return None
    said = _PREDICATE.search(before) or (not before and _SUBJECT.match(after))
    text = _IMPLIES.split(text)[-1].strip() or text
    sides = [side.strip() for side in _EQUALS.split(text)]
    last = _MODULUS.sub("", sides[-1]) or sides[0]
    number = _NUMBER.fullmatch(last)
    if number:
        new, fits = _new_number(text, last, re.sub("[, ]", "", number[1]), asked), _fits(run.group(), after, asked)
    else:
        new, fits = _new_expression(text, sides, asked), False
        if not said and not new and _asked_about(text, asked):
            return None
    result = len(sides) > 1 or run.group().lstrip("$\\([* ").startswith(("=", "≈")) or before.endswith(("=", "≈"))
    weight = 1.5 * new + 2.0 * fits + 3.0 * result
    if said:
        weight += 1 if before.endswith(":") else 2
    weight += clause[: run.start()].endswith("**") and after.startswith("**")
    weight -= 2 * (_SUPPOSED.search(before) is not None or _RELATION.search(text) is not None)
    return weight, Value(text if len(sides) == 2 and _LETTER.search(sides[0]) else last, new, fits, result)


def _new_number(text: str, last: str, digits: str, asked: Ask) -> bool:
    if "=" in text and "".join(text.split()) in asked.tight:
        return False
    return digits not in asked.given or (last.startswith("-") and f"-{digits}" not in asked.tight)


def _fits(number: str, after: str, asked: Ask) -> bool:
    dollars = "$" in number or after.lstrip().startswith("dollar")
    return bool(asked.unit & _following(after)) or (asked.money and dollars)


def _new_expression(text: str, sides: list[str], asked: Ask) -> bool:
    """Whether an expression answers: it is solved, and the question does not have it, but does have its letters."""
    letters = set(_LETTER.findall(sides[-1])) - asked.letters if asked.letters else set()
    left = sides[0] if len(sides) > 1 else ""
    unsolved = _LETTER.search(left) and not _LEFT.fullmatch(left) and "".join(left.split()) not in asked.tight
    return "".join(text.split()) not in asked.tight and not letters and not unsolved and not _RELATION.search(text)


def _asked_about(text: str, asked: Ask) -> bool:
    variables = set(_LETTER.findall(text)) - {"i", "e"}
    return "".join(text.split()) in asked.tight and (bool(variables) or len(text) > _LONG)


def _unmarked(span: str) -> str:
    start, end = next(marks for marks in _MARKS if span.startswith(marks[0]))
    return span[len(start) : -len(end)].strip()


def _trimmed(run: str) -> str:
    """A run of prose without letters that are words, signs that join it to words, and brackets that nothing closes."""
    text = _DANGLING.sub("", _STRAY.sub("", run.strip()))
    for opened, closed in (("([", ")]"), ("{", "}")):
        extra = sum(text.count(sign) for sign in opened) - sum(text.count(sign) for sign in closed)
        while extra < 0 and text[-1:] in closed and not text.endswith("\\" + text[-1:]):
            text, extra = text[:-1].rstrip(), extra + 1
        if extra > 0 and text[:1] in opened:
            text = text[1:].lstrip()
    return text.strip()


def _spelled(clause: str, asked: Ask) -> Value | None:
    """A number in words, in the asked unit or after `is` and the like."""
    for word in _SPELLED.finditer(clause):
        fits = bool(asked.unit & _following(clause[word.end() :]))
        if fits or _PREDICATE.search(clause[: word.start()].rstrip()):
            number = str(_WORDS.index(word.group().lower()) + 2)
            return Value(number, number not in asked.given, fits)
    return None


def _following(text: str) -> set[str]:
    """The words that stand right after a number."""
    return stems(" ".join(re.findall(r"[A-Za-z]+", text[:60])[:5]))
