"""One notation for mathematical answers: what only typesets goes; what is written in several ways is written in one.

Kept is what may decide whether two answers are equal: brackets, braces of sets, units, words, percent signs. Signs of
money are not.
"""

import re
import unicodedata
from functools import lru_cache

# ruff: noqa: RUF001 - signs that look alike are what this is about
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
    "≈": r"\approx ", "≡": r"\equiv ", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "√": r"\sqrt ", "°": r"^\circ ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "’": "'", "$": " ", "€": " ", "£": " ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "`": " ",
    "**": " ", "~": " ",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, sorted(_SIGNS, key=len, reverse=True))))
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")

# What LaTeX writes for looks alone, and what stands for it.
_LOOKS = tuple(
    (re.compile(pattern), stand_in)
    for pattern, stand_in in [
        (r"\\([$%#])", r"\1"),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r",\\!\s*|\{,\}", ","),
        (r"\\!|\\(?:displaystyle|textstyle|limits|boldsymbol|bf|rm)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|\\hspace\*?\{[^{}]*\}|\\phantom\{[^{}]*\}", " "),
        (r"\(?\s*\\p?mod\s*(?:\{[^{}]*\}|\d+)\s*\)?|\(mod \d+\)", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\([gl])eq(?:slant)?(?![a-z])", r"\\\1e "),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-z])\s*\}?|\\degree(?![a-z])", r"^\\circ "),
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
_STARTS = " \"'"
_ENDS = " \"'.,;:"


@lru_cache(maxsize=20_000)
def plain(text: str) -> str:
    """`text` in the one notation, spaces single."""
    for pattern, stand_in in _LOOKS:
        text = pattern.sub(stand_in, text)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found.group())}}}", text)
    text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found.group()), text)
    text = _SIGN.sub(lambda found: _SIGNS[found.group()], text)
    for _ in range(3):  # boxes in boxes
        text = _WORDS.sub(lambda box: box[1] if len(box[1]) == 1 else f" {box[1]} ", text)
    text = re.sub(r"(?<=[)\]])\s*U\s*(?=[(\[])", r" \\cup ", text)
    text = _ORDINAL.sub(r"\1\2", text)
    text = _NAME.sub(r"\\\1 ", text)
    text = _ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or ''}}}", text)
    text = _FRACTION.sub(lambda parts: f"\\frac{_braced(parts[1])}{_braced(parts[2])}", text)
    text = " ".join(text.replace("\\&", "and").split()).lstrip(_STARTS).rstrip(_ENDS)
    return text.strip("*")


def tight(text: str) -> str:
    """A plain text without the spaces and braces that part no values, and with one sign of multiplication."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\\(?:cdot|times)(?![a-z])", "*", text)
    return re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])", "", text)


def parts(text: str, separator: str) -> list[str]:
    """`text` parted where a pattern of `separator` stands outside all brackets; they need not match in kind."""
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
    """The brackets about all of a text, such as `[)`, and what is inside; without such, nothing and all of it."""
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
