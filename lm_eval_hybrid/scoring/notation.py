"""One notation for mathematical answers: what is only typesetting is dropped, the rest is written in one way.

Whatever may decide whether two answers are equal stays: brackets, braces of sets, units, words, percent signs. Currency
signs go. `latex2sympy2_extended.normalize_latex` does not replace this: it keeps Unicode signs, degrees and `\\text{}`,
and importing it loads sympy, which belongs in the verifier's process.
"""

import re
import unicodedata
from functools import lru_cache

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
_VULGAR = re.compile("[¼½¾⅐-⅞]")
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
    text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found.group()), text)
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
