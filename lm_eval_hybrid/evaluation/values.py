"""The value that a clause states: of all numbers and expressions in it, the one that answers what is asked."""

import re
from dataclasses import dataclass

from lm_eval_hybrid.evaluation.asking import Ask, stems

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d/])|\d+(?:\.\d+)?|\.\d+"
_TOKEN = (
    rf"(?:\\(?:[a-zA-Z]+|[{{}}%$,!; ])|{_DIGITS}|(?<![A-Za-z'])(?:sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
    r"|(?<![A-Za-z'&])[A-Za-z](?![A-Za-z'&])|[-−–+*/^=×÷·√π()\[\]{}|<>≤≥±∞∪∈°%!_$≈�]|,(?=\s?[-−\d\\(∞�]))"
)
_SPAN = r"\\\(.*?\\\)|\\\[.*?\\\]|\$\$.*?\$\$|(?<![\\\w])\$(?=[^\s$])(?:[^$]*?[^\s\\$])?\$(?!\d)"
_RUN = re.compile(rf"(?P<span>{_SPAN})|(?P<run>{_TOKEN}(?:\s?{_TOKEN})*)")
_MARKS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_VALUED = re.compile(r"\d|\\[a-zA-Z]|[a-zA-Z]\s*[-+*/^=(]|[π√∞]|^[a-zA-Z]$")
_EQUALS = re.compile(r"(?<![\\<>!:])=(?!=)")
_IMPLIES = re.compile(r"(?:\\q?quad|\s)*\\(?:Rightarrow|Longrightarrow|implies|iff|Leftrightarrow|therefore)(?![a-zA-Z])(?:\\q?quad|\s)*|⇒|=>")
_ABOUT = re.compile(r"approximately|about|roughly")
_NUMBER = re.compile(r"[-−\\$%\s]*([\d,. ]*\d)\s*(?:\\?%|\^?\s*\\circ|°)?[\\$.]*")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_NAME = re.compile(r"\\?[a-zA-Z](?:_\{?\w\}?)?|\\(?:begin|end|angle|triangle|alpha|theta)\b.{0,12}")
_LEFT = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()]*\))?")
_SUPPOSED = re.compile(r"\b(?:when|where|if|for|since|let|with|test|try|suppose|assume|consider)$", re.IGNORECASE)
_RELATION = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt)(?:q|qslant)?(?![a-z])")

_AMOUNT = r"\s+(?:(?:also|then|just|simply|equal to|approximately|about|roughly|an? (?:total|average|sum) of)\s+)*(?=[-$\\(*]*\d|\\frac)"
_SAYS_EQUAL = re.compile(
    r",?\s+(?:which|that|this|and (?:this|that|it)|it)(?: in this case)?"
    r"\s+(?:is|was|equals|g[ia]ves?(?: (?:us|him|her|them|you))?|makes|simplifies to|comes to|rounds (?:up |down |off )?to|results in|means|amounts to|leaves)"
    rf"{_AMOUNT}"
    r"|,?\s+(?:equals|is equal to|is equivalent to|simplifies to|adding up to|resulting in|totaling)" + _AMOUNT
    + r"|,\s+(?:giving|making|leaving)(?:\s+(?:us|it|him|her|them|you))?" + _AMOUNT
    + r"|,?\s+for a (?:grand )?total of\s+(?=[-$\\(*]*\d)"
)
_CLAUSE = re.compile(
    r";\s+|,\s+(?=(?!(?:and|or)\s+[-$\\(\d])(?:and|but|so|which|with|while|where|since|because|as|not|whereas|after|if|when|"
    r"given|giving|making|or|we|it|he|she|they|this|that|there|the|each|its|his|her|their|both|[A-Z][a-z]+)\b)"
    r"|\s+(?=(?:because|since|whereas|while|given that|after|before|so that)\s)|(?<=[a-z])\s+--?\s+(?=[a-z])|\s+(?=but\s)"
)
_PREDICATE = re.compile(
    r"(?:\b(?:is|are|was|were|be|being|becomes?|equals?|totals?|equal to|total of)\b|:)"
    r"(?:\s*(?:exactly|approximately|about|only|indeed|therefore|thus|also|the|an?|value|number|pair|ordered|just|simply|now|then|:))*\s*$"
)
_RESULT, _REASON = 0.15, 0.4  # what it is worth that a value is a result; what it costs that the clause gives a reason
_REASONS = re.compile(r"(?:since|because|as|if|when|where|given|while)\b", re.IGNORECASE)
_LONG = 6  # characters of an expression that is no answer where the question has it
NEW, FITS = 0.3, 0.2  # what a clause is worth whose value the question did not give; that has the asked unit
_PURPOSE = re.compile(r"(?:(?:and|so|then|now|next|finally|first)\W+)*to (?:find|determine|compute|calculate|get|solve|express|check)\b", re.IGNORECASE)
_JOINS = re.compile(r"\s*(?:,|,?\s*\b(?:and|or)\b)\s*")
_SUBJECT = re.compile(r"\W*(?:is|are|was|will be)\s+(?:the|how|what)\b")
_SMALL = {word: str(n) for n, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)}
_SPELLED = re.compile(rf"\b(?:{'|'.join(_SMALL)})\b", re.IGNORECASE)


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


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence, in which words that say that two things are equal are written `=`."""
    found = [piece.strip() for piece in _CLAUSE.split(_SAYS_EQUAL.sub(_sign, sentence)) if piece.strip()]
    return [piece for piece in found if not _PURPOSE.match(piece)] or found


def _sign(words: re.Match[str]) -> str:
    return " ≈ " if _ABOUT.search(words.group()) else " = "


def stated(sentence: str, asked: Ask) -> tuple[float, Value] | None:
    """How close the clause of a sentence that has a value is to what is asked, and the value; of several, the closest."""
    best: tuple[float, float, Value] | None = None
    for clause in clauses(sentence):
        each = value(clause, asked)
        if each is None:
            continue
        match = asked.match(clause)
        worth = match + NEW * each.new + FITS * each.fits + _RESULT * each.result - _REASON * bool(_REASONS.match(clause))
        if best is None or worth > best[0]:
            best = worth, match, each
    return best[1:] if best else None


def value(clause: str, asked: Ask) -> Value | None:
    """The number or expression that `clause` states, as it is written there; None where there is none.

    What follows `=` counts before what follows `is` and the like, and that before others; what is in the asked unit, and
    what the question did not give, before what is not. Of those alike the first counts, the last where nobody knows what is asked.
    """
    found: list[tuple[float, Value]] = []
    end = 0
    for run in _RUN.finditer(clause):
        each = _weighed(run, clause, asked)
        if each is None:
            continue
        if found and _JOINS.fullmatch(clause[end : run.start()]) and _alike(found[-1][1].text, each[1].text, asked):
            (weight, first), (other, second) = found.pop(), each
            joint = " and " if first.text.isdigit() and "/" in second.text else ", "  # 137 and 1/2
            each = (max(weight, other), Value(first.text + joint + second.text, first.new or second.new, second.fits))
        found.append(each)
        end = run.end()
    if not asked.question:
        found.reverse()
    return max(found, key=lambda each: each[0])[1] if found else _spelled(clause, asked)


def _alike(first: str, second: str, asked: Ask) -> bool:
    """Whether two values that `and`, `or` or a comma joins make one answer: they are of the same name, or none, or asked for."""
    names = [text.partition("=")[0].strip() if "=" in text else "" for text in (first, second)]
    if "" in names:
        return names == ["", ""] and bool(_LETTER.search(first)) == bool(_LETTER.search(second)) and (first[0] == "(") == (second[0] == "(")
    return names[0] == names[1] or stems(" ".join(names)) <= asked.words


def _weighed(run: re.Match[str], clause: str, asked: Ask) -> tuple[float, Value] | None:
    before, after = clause[: run.start()].rstrip("* "), clause[run.end() :]
    text = _unmarked(run.group()) if run["span"] else _trimmed(run.group())
    if not _VALUED.search(text) or _NAME.fullmatch(text):
        return None
    said = _PREDICATE.search(before) or (not before and _SUBJECT.match(after))
    text = _IMPLIES.split(text)[-1].strip() or text
    sides = [side.strip() for side in _EQUALS.split(text)]
    last = sides[-1] or sides[0]
    number = _NUMBER.fullmatch(last)
    if number:
        digits = re.sub("[, ]", "", number[1])
        new = digits not in asked.given or (last[0] in "-−" and f"-{digits}" not in asked.tight)
        new = new and not (len(sides) > 1 and "".join(text.split()) in asked.tight)
        dollars = "$" in run.group() or after.lstrip().startswith("dollar")
        fits = bool(asked.unit & _following(after)) or (asked.money and dollars)
    else:
        new, fits = _new(text, sides, asked), False
        repeated = not new and "".join(text.split()) in asked.tight
        if repeated and (set(_LETTER.findall(text)) - {"i", "e"} or len(text) > _LONG) and not said:
            return None  # what is asked about
    weight = 1.5 * new + 2.0 * fits
    result = len(sides) > 1 or run.group().lstrip("$\\([* ").startswith(("=", "≈")) or before.endswith(("=", "≈"))
    weight += 3 * result
    if said:
        weight += 1 if before.endswith(":") else 2
    weight += clause[: run.start()].endswith("**") and after.startswith("**")
    weight -= 2 * (_SUPPOSED.search(before) is not None or _RELATION.search(text) is not None)
    return weight, Value(text if len(sides) == 2 and _LETTER.search(sides[0]) else last, new, fits, result)


def _new(text: str, sides: list[str], asked: Ask) -> bool:
    """Whether an expression answers: the question does not have it, its letters are the question's, and it is solved."""
    tight = "".join(text.split())
    letters = set(_LETTER.findall(sides[-1])) - asked.letters if asked.letters else set()
    left = sides[0] if len(sides) > 1 else ""
    unsolved = _LETTER.search(left) and not _LEFT.fullmatch(left) and "".join(left.split()) not in asked.tight
    return tight not in asked.tight and not letters and not unsolved and not _RELATION.search(text)


def _unmarked(span: str) -> str:
    start, end = next(marks for marks in _MARKS if span.startswith(marks[0]))
    return span[len(start) : -len(end)].strip()


def _trimmed(run: str) -> str:
    """A run of prose without letters that are words, signs that join it to words, and brackets that nothing closes."""
    text = re.sub(r"^(?:[aAI]\s+)+|^x\s+(?=\d)|\s+[aAI]$", "", run.strip())
    text = re.sub(r"^[,*/+×÷·=≈\s]+|^[-−–]\s+|[\s,*/+×÷·=≈\-−–(\[{$]+$", "", text)
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
            number = _SMALL[word.group().lower()]
            return Value(number, number not in asked.given, fits)
    return None


def _following(text: str) -> set[str]:
    """The words that stand right after a number."""
    return stems(" ".join(re.findall(r"[A-Za-z]+", text[:60])[:5]))
