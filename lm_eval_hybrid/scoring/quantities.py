"""Numbers with whatever people write about them: thousands, fractions, powers of ten, percent, units, times of day."""

import re
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d/])|\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?:(?P<whole>\d+)(?:\s+and\s+|\s*))?(?:\\frac\{\s*(?P<over>-?[\d.]+)\s*\}\{\s*(?P<under>[\d.]+)\s*\}"
    r"|(?<![\d,.])(?P<above>\d+)\s*/\s*(?P<below>\d+)(?![\d.]))"
    rf"|(?P<decimal>{_DIGITS}(?:\.\d+|\.(?!\d))?|\.\d+)(?:\\overline\{{(?P<again>\d+)\}})?"
    r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*)?(?P<power>[-+]?\d+)(?:\s*\})?"
    r"|[eE](?P<exponent>[-+]?\d+)(?!\w))?)"
)
_PERCENT = re.compile(r"\s*(?:%|per ?cent\b|percentage points?\b)")
# Units of few letters; others have three letters or more, and none of those that join numbers.
_SHORT = (
    r"km|cm|mm|m|kg|g|mg|ml|L|l|lbs?|oz|ft|in|yds?|mi|hrs?|h|mins?|s|secs?|mph|rpm|[ap]\.?m\.?|st|nd|rd|th|C|F|K|of|per"
    r"|an?|sq|cu|to go"
)
_JOINING = r"(?:and|or|to|by|times|plus|minus|more than|less than)\b"
_WORD = rf"(?:(?!{_JOINING})[A-Za-z][A-Za-z'-]{{2,}}(?![A-Za-z'-])|(?:{_SHORT})(?![A-Za-z'-]))\.?"
_POWER = r"(?:\s*\^\s*(?:\{\s*)?-?[1-4](?:\s*\})?)?"
_UNIT = re.compile(rf"\s*(?:\^\\circ|(?:(?:\^\\circ\s*|[(/-]\s*)?{_WORD}{_POWER}[,)]*\s*)+)")
_LAST_UNIT = re.compile(rf"(?<=[\w)}}])\s+(?:{_WORD}{_POWER}\s*)+$|\s*\^\\circ$")
_ATTACHED = re.compile(r"(?!(?:[msh]|an?|in)\b)[A-Za-z]")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MOST_POWER = 400  # of ten
_MOST_CHARACTERS = 4000
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?:\s*([ap])\.?\s?m\.?)?", re.IGNORECASE)
_NEARLY = Fraction(1, 500_000)  # of the truth: what a decimal may miss it by
_ENOUGH_DIGITS = 6  # of a decimal that may miss it at all


@dataclass(frozen=True)
class Quantity:
    """A number, exact, and how it was written.

    Attributes:
        digits: significant ones of a decimal; 0 for a fraction.
        percent: whether a sign or word of percent follows.
        unit: what else follows; empty where nothing does.
    """

    value: Fraction
    digits: int
    percent: bool
    unit: str

    def equals(self, truth: "Quantity") -> bool:
        """Whether this answers for `truth`: of the same value, or a decimal of it in six digits or more.

        Percentages of equal number count, and those of equal value: 50% for 50 and for 0.5. Units do not count.
        """
        return any(_near(mine, its, self.digits) for mine in self._values() for its in truth._values()) and not (
            self.percent and truth.percent and not _near(self.value, truth.value, self.digits)
        )

    def _values(self) -> tuple[Fraction, ...]:
        scale = _SCALES.get(self.unit.split(" ")[0].rstrip("s"), 1)
        return tuple({self.value, self.value * scale, self.value / 100 if self.percent else self.value})


def quantity(answer: str) -> Quantity | None:
    """The one number, with or without a unit, that a plain text (see `notation.plain`) is; None where it is none.

    `5x`, `x = 31` and `3 or 4` are none, nor are words alone; `31 crates`, `1\\frac{4}{5}` and `5.4 \\times 10^3` are.
    """
    if len(answer) > _MOST_CHARACTERS:
        return None
    found = _NUMBER.match(answer)
    value = _value(found) if found else None
    if found is None or value is None:
        return None
    rest = answer[found.end() :]
    percent = _PERCENT.match(rest)
    unit = rest[percent.end() :] if percent else rest
    if unit.strip() and (not _UNIT.fullmatch(unit) or (unit[0].isalpha() and not _ATTACHED.match(unit))):
        return None
    decimal = found["decimal"] or ""
    return Quantity(value, len(re.sub(r"[,. ]", "", decimal).lstrip("0")), percent is not None, unit.strip())


def without_unit(text: str) -> str:
    """A plain text without the words of units that follow an expression: `12\\pi square units`."""
    found = _LAST_UNIT.search(text)
    return text[: found.start()].rstrip() if found and found.start() else text


def clock(answer: str) -> tuple[int, int, str] | None:
    """Hour, minute and `a`, `p` or nothing of a time of day such as `6:30 PM`."""
    found = _CLOCK.fullmatch(answer)
    return (int(found[1]), int(found[2]), (found[3] or "").lower()) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    if found["decimal"]:
        value = _decimal(found)
    else:
        over, under = found["over"] or found["above"], found["under"] or found["below"]
        try:
            value = int(found["whole"] or 0) + Fraction(over) / Fraction(under)
        except (ValueError, ZeroDivisionError):  # 1.2.3, or a fraction over nothing
            return None
    return None if value is None else -value if found["sign"] == "-" else value


def _decimal(found: re.Match[str]) -> Fraction | None:
    written = re.sub("[, ]", "", found["decimal"])
    value = Fraction(written.rstrip(".") or 0)
    if found["again"]:
        places = len(written.partition(".")[2])
        value += Fraction(int(found["again"]), 10**places * (10 ** len(found["again"]) - 1))
    power = int(found["power"] or found["exponent"] or 0)
    return value * Fraction(10) ** power if abs(power) <= _MOST_POWER else None


def _near(value: Fraction, truth: Fraction, digits: int) -> bool:
    if value == truth:
        return True
    return digits >= _ENOUGH_DIGITS and truth.denominator != 1 and abs(value - truth) <= _NEARLY * abs(truth)
