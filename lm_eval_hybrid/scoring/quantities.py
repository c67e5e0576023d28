"""Numbers as people write them: thousands, fractions, powers of ten, percent, units, number words, times of day."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")  # from 2

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d/])|\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?:(?P<whole>\d+)(?:\s+and\s+|\s*))?(?:\\frac\{\s*(?P<over>-?[\d.]+)\s*\}\{\s*(?P<under>[\d.]+)\s*\}"
    r"|(?<![\d,.])(?P<above>\d+)\s*/\s*(?P<below>\d+)(?![\d.]))"
    rf"|(?P<decimal>{_DIGITS}(?:\.\d+|\.(?!\d))?|\.\d+)(?:\\overline\{{(?P<repeating>\d+)\}})?"
    r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*)?(?P<power>[-+]?\d+)(?:\s*\})?"
    r"|[eE](?P<exponent>[-+]?\d+)(?!\w))?)"
)
_PERCENT = re.compile(r"\s*(?:%|per ?cent\b|percentage points?\b)")
# Units have three letters or more, but for these, and are none of the words that join numbers.
_SHORT_UNIT = (
    r"km|cm|mm|m|kg|g|mg|ml|L|l|lbs?|oz|ft|in|yds?|mi|hrs?|h|mins?|s|secs?|mph|rpm|[ap]\.?m\.?|st|nd|rd|th|C|F|K|of|per"
    r"|an?|sq|cu|to go"
)
_JOINING = r"(?:and|or|to|by|times|plus|minus|more than|less than)\b"
_WORD = rf"(?:(?!{_JOINING})[A-Za-z][A-Za-z'-]{{2,}}(?![A-Za-z'-])|(?:{_SHORT_UNIT})(?![A-Za-z'-]))\.?"
_POWER = r"(?:\s*\^\s*(?:\{\s*)?-?[1-4](?:\s*\})?)?"
_UNIT = re.compile(rf"\s*(?:\^\\circ|(?:(?:\^\\circ\s*|[(/-]\s*)?{_WORD}{_POWER}[,)]*\s*)+)")
_LAST_UNIT = re.compile(rf"(?<=[\w)}}])\s+(?:{_WORD}{_POWER}\s*)+$|\s*\^\\circ$")
_MORE_WORDS = re.compile(rf"\s+(?!{_JOINING})[A-Za-z]{{2,}}[^=+*^\\]*")  # after a number: `31 crates of 12`
_ATTACHED = re.compile(r"(?!(?:[msh]|an?|in)\b)[A-Za-z]|m\s*\^")  # `5x` and `5m` are expressions
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAX_POWER = 400  # of ten
_MAX_CHARACTERS = 4000
_MIN_DIGITS = 6  # significant ones of a decimal that may stand for a fraction
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?:\s*([ap])\.?\s?m\.?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A number, exact, and how it was written.

    Attributes:
        step: one in the last decimal place; 0 for a fraction or repeating decimal.
        digits: significant digits of a decimal.
        percent: whether a sign or word of percent follows.
        unit: what else follows; may be empty.
    """

    value: Fraction
    step: Fraction
    digits: int
    percent: bool
    unit: str

    def equals(self, truth: "Quantity") -> bool:
        """Whether this number answers for `truth`: of the same value, or a fraction in six decimal digits or more.

        Percentages match by number and by value: 50% matches 50 and 0.5. Units do not count.
        """
        if self.percent and truth.percent:
            return self._near(truth, Fraction(1), Fraction(1))
        return any(self._near(truth, mine, its) for mine in self._scales() for its in truth._scales())

    def _near(self, truth: "Quantity", scale: Fraction, true_scale: Fraction) -> bool:
        mine, its = self.value * scale, truth.value * true_scale
        if mine == its:
            return True
        rounds = self.digits >= _MIN_DIGITS and self.step < 1 and not truth.step
        return rounds and abs(mine - its) < self.step * scale / (1 if abs(mine) < abs(its) else 2)

    def _scales(self) -> set[Fraction]:
        """What the number may be multiplied by, as in `5 dozen` or `50%`."""
        word = _SCALES.get(self.unit.split(" ")[0].rstrip("s"), 1)
        return {Fraction(1), Fraction(word), Fraction(1, 100 if self.percent else 1)}


def quantity(answer: str) -> Quantity | None:
    """The number, with or without a unit, that a plain text (see `plain`) consists of; None for other texts.

    `31 crates of 12`, `1\\frac{4}{5}` and `5.4 \\times 10^3` are numbers; `5x`, `x = 31` and `3 or 4` are not.
    """
    if answer.lower() in NUMBER_WORDS:
        answer = str(NUMBER_WORDS.index(answer.lower()) + 2)
    if len(answer) > _MAX_CHARACTERS or not (found := _NUMBER.match(answer)) or (value := _value(found)) is None:
        return None
    rest = answer[found.end() :]
    percent = _PERCENT.match(rest)
    unit = rest[percent.end() :] if percent else rest
    is_unit = _UNIT.fullmatch(unit) and (not unit[0].isalpha() or _ATTACHED.match(unit))
    if unit.strip() and not is_unit and not _MORE_WORDS.fullmatch(unit):
        return None
    step, digits = Fraction(0), 0
    if found["decimal"] and not found["repeating"]:
        written = re.sub("[, ]", "", found["decimal"])
        step = Fraction(10) ** (_exponent(found) - len(written.partition(".")[2]))
        digits = len(written.replace(".", "").lstrip("0"))
    return Quantity(value, step, digits, percent is not None, unit.strip())


def without_unit(text: str) -> str:
    """A plain text without the words of a unit after an expression: `12\\pi` of `12\\pi square units`."""
    found = _LAST_UNIT.search(text)
    return text[: found.start()].rstrip() if found and found.start() else text


def clock(answer: str) -> tuple[int, int, str] | None:
    """Hour, minute and `a`, `p` or nothing of a time of day such as `6:30 PM`; None for other texts."""
    found = _CLOCK.fullmatch(answer)
    return (int(found[1]), int(found[2]), (found[3] or "").lower()) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    if found["decimal"]:
        value = _decimal(found)
    else:
        over, under = found["over"] or found["above"], found["under"] or found["below"]
        try:
            value = int(found["whole"] or 0) + Fraction(over) / Fraction(under)
        except (ValueError, ZeroDivisionError):  # 1.2.3, or a fraction over zero
            return None
    return None if value is None else -value if found["sign"] == "-" else value


def _decimal(found: re.Match[str]) -> Fraction | None:
    written = re.sub("[, ]", "", found["decimal"])
    value = Fraction(written.rstrip(".") or 0)
    if found["repeating"]:
        places = len(written.partition(".")[2])
        value += Fraction(int(found["repeating"]), 10**places * (10 ** len(found["repeating"]) - 1))
    power = _exponent(found)
    return value * Fraction(10) ** power if abs(power) <= _MAX_POWER else None


def _exponent(found: re.Match[str]) -> int:
    return int(found["power"] or found["exponent"] or 0)


# ruff: noqa: RUF001 - signs that look alike are what this is about
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
    "≈": r"\approx ", "≡": r"\equiv ", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "√": r"\sqrt ", "°": r"^\circ ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "∅": r"\emptyset ", "’": "'", "$": " ", "€": " ", "£": " ", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ", "`": " ", "**": " ", "~": " ",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, sorted(_SIGNS, key=len, reverse=True))))
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_THOUSANDS = re.compile(r",\\!\s*|\{,\}")

# Commands that only typeset, and what replaces them.
_TYPESETTING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\([$%#])", r"\1"),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\!|\\(?:displaystyle|textstyle|limits|boldsymbol|bf|rm)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|\\hspace\*?\{[^{}]*\}|\\phantom\{[^{}]*\}", " "),
        (r"\(?\s*\\p?mod\s*(?:\{[^{}]*\}|\d+)\s*\)?|\(mod \d+\)", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\([gl])eq(?:slant)?(?![a-z])", r"\\\1e "),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\varnothing(?![a-z])", r"\\emptyset "),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-z])\s*\}?|\\degree(?![a-z])", r"^\\circ "),
        # Powers as programs write them. Bold type has a space before its first asterisks, or after its last.
        (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"(?<![\\A-Za-z])exp\s*\(([^()]*)\)", r"e^{\1}"),
    ]
)
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|[mh]box|bm|emph|operatorname)\*?\s*\{([^{}]*)\}"
)
_NAME = re.compile(
    r"(?<![\\A-Za-z])(sqrt|pi|infty|(?:(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln)(?=\s*[\\({\d]|\s[a-z]\b))(?![A-Za-z])"
)
_ORDINAL = re.compile(r"(\d)\s*\^?\s*\{?\s*(st|nd|rd|th)\b\s*\}?")
_ROOT = re.compile(r"\\sqrt\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z](?![a-zA-Z])))")
_PART = r"(\{[^{}]*\}|\d|[a-zA-Z]|\\pi(?![a-z]))"
_FRACTION = re.compile(rf"\\frac\s*{_PART}\s*{_PART}")
_BRACKETS = (
    r"(?P<open>\\langle(?![a-z])|\\?[({\[]|\\begin(?![a-z]))|(?P<close>\\rangle(?![a-z])|\\?[)}\]]|\\end(?![a-z]))"
)
_ROUND = {"\\langle": "(", "\\rangle": ")"}


@lru_cache(maxsize=20_000)
def plain(text: str) -> str:
    """`text` in the one notation, with single spaces."""
    text = plain_digits(text)
    for pattern, replacement in _TYPESETTING:
        text = pattern.sub(replacement, text)
    text = _SIGN.sub(lambda found: _SIGNS[found.group()], text)
    for _ in range(3):  # words in words
        text = _WORDS.sub(lambda found: found[1] if len(found[1]) == 1 else f" {found[1]} ", text)
    text = re.sub(r"(?<=[)\]])\s*U\s*(?=[(\[])", r" \\cup ", text)
    text = _ORDINAL.sub(r"\1\2", text)
    text = _NAME.sub(r"\\\1 ", text)
    text = _ROOT.sub(lambda found: f"\\sqrt{{{found[1] or found[2] or ''}}}", text)
    text = _FRACTION.sub(lambda found: f"\\frac{_braced(found[1])}{_braced(found[2])}", text)
    text = " ".join(text.replace("\\&", "and").split()).lstrip(" \"'").rstrip(" \"'.,:;")
    return text.strip("*")


def plain_digits(text: str) -> str:
    r"""`text` with thousands parted by bare commas (not `{,}` or `,\!`) and exponents written as `^{2}` (not `²`)."""
    text = _THOUSANDS.sub(",", text)
    return _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found.group())}}}", text).replace(
        "\u2212", "-"
    )


def tight(text: str) -> str:
    """A plain text without the spaces and braces that separate nothing, and with `*` for every multiplication sign."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\\(?:cdot|times)(?![a-z])", "*", text)
    return re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])", "", text)


def parts(text: str, separator: str) -> list[str]:
    """`text` split where the pattern `separator` matches outside all brackets. Brackets need not match in kind."""
    depth, start, found = 0, 0, []
    for mark in re.finditer(rf"{_BRACKETS}|{separator}", text):
        if mark["open"]:
            depth += 1
        elif mark["close"]:
            depth -= 1
        elif depth == 0:
            found.append(text[start : mark.start()].strip())
            start = mark.end()
    return [*found, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str]:
    """The brackets around all of a text, such as `[)`, and the text inside; without brackets, `""` and the text."""
    depth = 0
    marks = list(re.finditer(_BRACKETS, text))
    for mark in marks:
        depth += 1 if mark["open"] else -1
        if depth <= 0 and mark is not marks[-1]:
            return "", text
    if len(marks) < 2 or depth != 0 or marks[0].start() != 0 or marks[-1].end() != len(text) or text[1:6] == "begin":
        return "", text
    brackets = "".join(_ROUND.get(mark.group(), mark.group()[-1]) for mark in (marks[0], marks[-1]))
    return brackets, text[marks[0].end() : marks[-1].start()].strip()


def _braced(part: str) -> str:
    return part if part.startswith("{") else f"{{{part}}}"
