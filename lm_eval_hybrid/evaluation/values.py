"""The value that a clause states: of all numbers and expressions in it, the one that answers what is asked."""

import re
from dataclasses import dataclass

from lm_eval_hybrid.evaluation.asking import Ask, stems

_COMMAND = r"\\(?:[a-zA-Z]+|[{}%$,!; ])"
_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d/])|\d+(?:\.\d+)?|\.\d+"
_TOKEN = (
    rf"(?:{_COMMAND}|{_DIGITS}|(?<![A-Za-z'])(?:sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
    r"|(?<![A-Za-z'&])[A-Za-z](?![A-Za-z'&])|[-−–+*/^=×÷·√π()\[\]{}|<>≤≥±∞∪∈°%!_$]|,(?=\s?[-\d\\(]))"
)
_SPAN = r"\\\((?:.*?)\\\)|\\\[(?:.*?)\\\]|\$\$(?:.*?)\$\$|(?<![\\\w])\$(?=[^\s$])(?:[^$]*?[^\s\\$])?\$(?![\d])"
_RUN = re.compile(rf"(?P<span>{_SPAN})|(?P<run>{_TOKEN}(?:\s?{_TOKEN})*)")
_HAS_VALUE = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]\s*[-+*/^=(]|[π√∞]|^[a-zA-Z]$")
_EQUALS = re.compile(r"(?<![\\<>!:])=(?!=)|≈|\\approx(?![a-z])")
_SAYS_EQUAL = re.compile(
    r",?\s+(?:which|that|this|and this|and that|and it|it)\s+(?:is|equals|gives(?: us| him| her| them)?|makes|simplifies to|comes to|results in|means|amounts to|leaves)"
    r"\s+(?:also |then |just |simply |equal to |a total of |approximately |about )?(?=[-$\\(]*\d|\\frac|\$)"
    r"|\s+(?:equals|is equal to|is equivalent to|simplifies to)\s+"
    r"|,?\s+(?:for|giving|making|leaving)(?: \w+)? a total of\s+"
)
_CLAUSE = re.compile(
    r";\s+|,\s+(?=(?!(?:and|or)\s+[-$\\(\d])(?:and|but|so|which|with|while|where|since|because|as|not|whereas|after|if|when|given|giving|making|or)\b)"
    r"|\s+(?=(?:because|since|whereas|while|if|when|given that|after|before|so that)\s)|(?<=[a-z])\s+--?\s+(?=[a-z])|\s+(?=but\s)"
)
_PREDICATE = re.compile(
    r"(?:\b(?:is|are|was|were|be|being|becomes?|equals?|totals?|totaling|equal to|total of)\b|[:=≈])"
    r"(?:\s*(?:exactly|approximately|about|only|indeed|therefore|thus|also|the|a|an|value|number|pair|ordered|just|simply|now|then|:))*\s*$"
)
_SMALL = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
_SPELLED = re.compile(rf"\b(?:{'|'.join(w for w in _SMALL if w not in ('one', 'zero'))})\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Candidate:
    value: "Value"
    score: float
    end: int


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence; those of one word are part of the next."""
    plain = _SAYS_EQUAL.sub(" = ", sentence)
    found = [piece.strip() for piece in _CLAUSE.split(plain) if piece and piece.strip()]
    return found


@dataclass(frozen=True)
class Value:
    """A number or expression, as it is written.

    Attributes:
        new: whether the question did not give it.
        fits: whether it is in the unit that is asked for.
    """

    text: str
    new: bool
    fits: bool


def value(clause: str, asked: Ask) -> Value | None:
    """The number or expression that `clause` states, as it is written there; None where there is none.

    A number in the asked unit counts before others, what follows `=`, `is` and the like before what precedes them, a new
    number before one that the question gave.
    """
    runs = [run for run in _RUN.finditer(clause) if _HAS_VALUE.search(_inner(run))]
    found = [each for run in runs if (each := _candidate(run, clause, asked)) is not None]
    if not found:
        return _spelled(clause, asked)
    return max(found, key=lambda each: (each.score, -each.end)).value


def _spelled(clause: str, asked: Ask) -> Value | None:
    """A number in words, in the asked unit or after `is` and the like."""
    for word in _SPELLED.finditer(clause):
        following = stems(" ".join(re.findall(r"[A-Za-z]+", clause[word.end() :])[:4]))
        fits = bool(asked.unit & following)
        if fits or _PREDICATE.search(clause[: word.start()]):
            number = _SMALL[word.group().lower()]
            return Value(number, number not in asked.given, fits)
    return None


def _inner(run: re.Match[str]) -> str:
    text = run.group().strip()
    for start, end in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if run["span"] and text.startswith(start) and text.endswith(end):
            return text[len(start) : -len(end)].strip()
    return text


def _candidate(run: re.Match[str], clause: str, asked: Ask) -> _Candidate | None:
    inner, before, after = _inner(run), clause[: run.start()], clause[run.end() :]
    if not run["span"]:
        inner = _trimmed(inner, before)
        if not inner or not _HAS_VALUE.search(inner) or re.fullmatch("[A-Za-z]", inner):
            return None
    sides = _EQUALS.split(inner)
    last = sides[-1].strip() or (sides[-2].strip() if len(sides) > 1 else "")
    number = re.fullmatch(r"[-−\\$%\s]*([\d,. ]*\d)\s*(?:\\?%|\^?\s*\\circ|°)?[\\$.]*", last)
    digits = number[1].replace(",", "").replace(" ", "") if number else ""
    fits, new = False, "".join(inner.split()) not in asked.tight
    score = 1.5 * (len(sides) > 1 or re.search(r"[=≈]\s*\**\s*$", before) is not None)
    score += 2 * (_PREDICATE.search(before.rstrip("*_ ") + " ") is not None)
    if number:
        following = stems(" ".join(re.findall(r"[A-Za-z]+", after[:60])[:5]))
        new = digits not in asked.given
        fits = bool(asked.unit & following) or (asked.money and ("$" in run.group() or after.lstrip().startswith("dollar")))
        score += 2 * fits
    score += 1.5 * new
    if re.fullmatch(r"[a-zA-Z](?:_\w)?", inner):
        score -= 3  # a name, not a value
    if before.endswith("**") and after.startswith("**"):
        score += 1
    return _Candidate(Value(inner if len(sides) < 3 else last, new, fits), score, run.end())


def _trimmed(run: str, before: str) -> str:
    """A run of prose without letters that are words, signs that join it to words, and brackets that nothing closes."""
    text = re.sub(r"^(?:[aAIx]\s+)+|\s+[aAI]$", "", run.strip())
    text = re.sub(r"^[,*/+×÷·=≈]+\s*|^[-−–]\s+|[\s,*/+×÷·=\-−–(\[{$]+$", "", text)
    for opened, closed in ("()", "[]", "{}"):
        while text.endswith(closed) and text.count(opened) < text.count(closed) and not text.endswith("\\" + closed):
            text = text[:-1].rstrip()
        if text.startswith(opened) and text.count(opened) > text.count(closed):
            text = text[1:].lstrip()
    return text.strip()
