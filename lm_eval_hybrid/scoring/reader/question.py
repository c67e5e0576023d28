"""What a question asks, so that the sentence that answers it can be told from the rest of a solution."""

import re
from dataclasses import dataclass
from functools import lru_cache

from lm_eval_hybrid.scoring.quantities import plain_digits

_TOKENS = re.compile(r"\w+")
_STOP = frozenset(
    _TOKENS.findall(
        "a an the of to in on at for by with from and or as is are was were be been do does did has have had "
        "will would can could should must may how many much what which who whom whose when where why find "
        "compute calculate determine evaluate express your answer if it its that this these those they them "
        "their he she his her him we you i there so then than after before into each value form simplest "
        "given such following please let not number total"
    )
)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\\[a-z]+|\d[\d,.]*\d|\d")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.?!])[$\"')]*\s+(?=[A-Z$\\(])")
_ASKS = re.compile(
    r"\?|\b(?:find|compute|calculate|determine|evaluate|express|simplify|what|how|solve|convert|factor|write|enter)\b",
    re.IGNORECASE,
)
_ASKING_PART = re.compile(
    r"\b(?:how|what|find|compute|calculate|determine|evaluate|simplify|solve|convert|factor)\b"
    r"|(?:^|, )(?:which|express)\b",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$]*\$")
_MAX_NAME = 12  # characters of a formula, its delimiters included, that is a name rather than an expression
_CHOICES = re.compile(r"\(A\).*\(B\)|\bA[).].*\bB[).]")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_WORD_WANTED = re.compile(
    r"(?:^|, )(?:who|whose|whom)\b|(?:^|, )which (?:direction|student|person|child|of|city|day|month|colou?r|team|"
    r"animal|option|statement|graph|curve|shape|equation|figure)\b|\bor neither\b|\benter \W*[\"“'`]+[a-z]+"
    r"|\ba (?:line|circle|parabola)\b.*\bor\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"\b(?:all|both|each|values|solutions|roots|zeros|separated)\b", re.IGNORECASE)
_AMOUNT = re.compile(r"\W*[\d,.]+\W*(?:\\circ\W*|[A-Za-z ]*\$[\d,.]*)?")  # a formula that only gives a number
_STEM = 5  # characters


@dataclass(frozen=True)
class Question:
    """What a question asks.

    Attributes:
        words: stems of the words that say what is asked for; empty where no question is known.
        given: the numbers in the question, without commas.
        several: whether there may be more than one answer.
        in_words: whether a name or word is asked for rather than a number.
        choices: whether it lists choices (A), (B), ...
        text: the whole question with single spaces; `tight`: without spaces.
    """

    words: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    several: bool = False
    in_words: bool = False
    choices: bool = False
    text: str = ""
    tight: str = ""

    def match(self, clause: str) -> float:
        """Share of `words` that occur in a clause, in [0, 1]."""
        return len(self.words & stems(clause)) / len(self.words) if self.words else 0.0


@lru_cache(maxsize=2048)
def parse(text: str | None) -> Question:
    """Parse the last sentence that asks something; an empty `Question` if there is no text."""
    if not text:
        return Question()
    flat = " ".join(plain_digits(_DRAWING.sub(" ", text)).split())
    asking = [part for part in _SENTENCE_END.split(flat) if _ASKS.search(part)] or [flat]
    last = next((part for part in reversed(asking) if "?" in part), asking[-1])
    starts = [found.start() for found in _ASKING_PART.finditer(last)]
    last = last[starts[-1] :] if starts else last
    return Question(
        words=frozenset(stems(_FORMULA.sub(_short, last)) or stems(last)),
        given=frozenset(each.replace(",", "") for each in _NUMBER.findall(_FORMULA.sub(_amount, flat))),
        several=_SEVERAL.search(flat) is not None,
        in_words=any(_WORD_WANTED.search(part) for part in (asking[-1], last)),
        choices=_CHOICES.search(flat) is not None,
        text=flat,
        tight="".join(flat.split()),
    )


def stems(text: str) -> set[str]:
    """The words of a text that carry meaning, without their endings."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if not {word, word.removesuffix("s")} & _STOP}


def _short(formula: re.Match[str]) -> str:
    return formula.group() if len(formula.group()) <= _MAX_NAME else " "


def _amount(formula: re.Match[str]) -> str:
    return formula.group() if _AMOUNT.fullmatch(formula.group()) else " "


def _stem(word: str) -> str:
    word = word.removesuffix("'s").replace(",", "")
    for ending in ("ings", "ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)[:_STEM]
    return word.rstrip("e")[:_STEM] if len(word) > 3 else word
