"""What a question asks for, so that the sentence of a solution that answers it can be told from the others."""

import re
from dataclasses import dataclass
from functools import lru_cache

_LETTERS = re.compile(r"\w+")
_STOP = frozenset(
    _LETTERS.findall(
        "a an the of to in on at for by with from and or as is are was were be been do does did has have had "
        "will would can could should must may how many much what which who whom whose when where why find "
        "compute calculate determine evaluate express your answer if it its that this these those they them "
        "their he she his her him we you i there so then than after before into each value form simplest "
        "given such following please let not number total"
    )
)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\\[a-z]+|\d[\d,.]*\d|\d")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.?!])[$\"')]*\s+(?=[A-Z$\\(])")
_ASIDE = re.compile(r"\([A-Z][a-z]*(?: [^() ]+){3,} ?\)")  # a hint
_FORM = re.compile(r"(?:Express|Enter|Give|Write|Round|State)\b.*\b(?:answer|separated|form|pair|triple|nearest)\b")
_ASKS = re.compile(
    r"\?|\b(?:find|compute|calculate|determine|evaluate|express|simplify|what|how|solve|convert|factor|write|enter)\b",
    re.IGNORECASE,
)
_STARTS = re.compile(
    r"\b(?:how|what|find|compute|calculate|determine|evaluate|simplify|solve|convert|factor)\b"
    r"|(?:^|, )(?:which|express)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"(?<=.{12}),?\s(?:if|so that|such that|where|given that|when|for which|satisfying|provided|knowing|assuming)\b.*"
)
_FORMULA = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$]*\$")
_NAME = 12  # characters of a formula, its marks included, that is a name rather than an expression
_CHOICES = re.compile(r"\(A\).*\(B\)|\bA[).].*\bB[).]")
_UNIT = re.compile(
    r"\bhow many\s+((?:[A-Za-z-]+\s*){1,6})|\bin ([a-z]+)\s*\?|\bnumber of ((?:[A-Za-z-]+\s*){1,4})", re.IGNORECASE
)
_NO_UNIT = frozenset(
    _LETTERS.findall(
        "does do did is are was were will would can could must should has have had be in of that if there from for to "
        "on with"
    )
)
_LOOSE = frozenset(("more", "fewer", "less", "total", "different", "possible", "other", "extra", "additional", "new"))
_MONEY = re.compile(
    r"\bhow much (?:more )?(?:money|profit|change)|\b(?:money|costs?|price|pa(?:id|ys?)|spen[dt]s?)\b"
    r"|\b(?:earn|owe)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LETTER = re.compile(r"(?<![A-Za-z\\'])[A-Za-z](?![A-Za-z'])")
_IN_WORDS = re.compile(
    r"(?:^|, )(?:who|whose|whom)\b|(?:^|, )which (?:direction|student|person|child|of|city|day|month|colou?r|team|"
    r"animal|option|statement|graph|curve|shape|equation|figure)\b|\bor neither\b|\benter \W*[\"“'`]+[a-z]+"
    r"|\ba (?:line|circle|parabola)\b.*\bor\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"\b(?:all|both|each|values|solutions|roots|zeros|separated)\b", re.IGNORECASE)
_AMOUNT = re.compile(r"\W*[\d,.]+\W*(?:\\circ\W*|[A-Za-z ]*\$[\d,.]*)?")
_LONGEST_HEAD = 4  # words
_STEM = 5


@dataclass(frozen=True)
class Ask:
    """What is asked.

    Attributes:
        words: what is asked in, as stems.
        head: those of them that name what is asked for: `probability`, `red chickens`.
        unit: stems of what is counted or measured; empty where the question does not say.
        given: the numbers that the question has, without commas.
        letters: the names of variables and constants in it.
        several: whether there may be more than one answer.
        in_words: whether a name or word is asked for, not a number.
        choices: whether it lists choices (A), (B), ...
        money: whether an amount of money is asked for.
        question: all of it, spaces single; `tight`: without spaces.
    """

    words: frozenset[str] = frozenset()
    head: frozenset[str] = frozenset()
    unit: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    letters: frozenset[str] = frozenset()
    several: bool = False
    in_words: bool = False
    choices: bool = False
    money: bool = False
    question: str = ""
    tight: str = ""

    def match(self, clause: str) -> float:
        """Share of the asked words that a clause has, those of the head twice, in [0, 1]; 0 where nothing is asked."""
        found, asked = stems(clause), len(self.words) + len(self.head)
        return (len(self.words & found) + len(self.head & found)) / asked if asked else 0.0


@lru_cache(maxsize=2048)
def ask(question: str | None) -> Ask:
    """What a question asks in the last of its sentences that ask; of none, nothing."""
    if not question:
        return Ask()
    flat = " ".join(_DRAWING.sub(" ", question).split())
    parts = [part for part in _SENTENCE.split(_ASIDE.sub(" ", flat)) if _ASKS.search(part)] or [flat]
    asking = [part for part in parts if not _FORM.match(part)] or parts
    last = next((part for part in reversed(asking) if "?" in part), asking[-1])
    starts = [found.start() for found in _STARTS.finditer(last)]
    last = _CONDITION.sub("", last[starts[-1] :] if starts else last)
    return Ask(
        words=frozenset(stems(_FORMULA.sub(_named, last)) or stems(last)),
        head=frozenset(_head(last)),
        unit=frozenset(_unit(last)),
        given=frozenset(each.replace(",", "") for each in _NUMBER.findall(_FORMULA.sub(_numeric, flat))),
        letters=frozenset(_LETTER.findall(flat)) | {"i", "e"},
        in_words=_IN_WORDS.search(parts[-1]) is not None or _IN_WORDS.search(last) is not None,
        several=_SEVERAL.search(flat) is not None,
        choices=_CHOICES.search(flat) is not None,
        money=_MONEY.search(last) is not None,
        question=flat,
        tight="".join(flat.split()),
    )


def _named(formula: re.Match[str]) -> str:
    return formula.group() if len(formula.group()) <= _NAME else " "


def _numeric(formula: re.Match[str]) -> str:
    return formula.group() if _AMOUNT.fullmatch(formula.group()) else " "


def stems(text: str) -> set[str]:
    """The words of a text that carry meaning, without their endings."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if not {word, word.removesuffix("s")} & _STOP}


def _head(asked: str) -> set[str]:
    words = re.findall(r"[A-Za-z-]+", _FORMULA.sub(_named, asked))
    while words and words[0].lower() in _STOP:
        words.pop(0)
    end = next((place for place, word in enumerate(words) if word.lower() in _STOP), len(words))
    return stems(" ".join(words[: min(end, _LONGEST_HEAD)])) - _LOOSE


def _unit(asked: str) -> set[str]:
    found: set[str] = set()
    for unit in _UNIT.finditer(asked):
        for word in next(filter(None, unit.groups())).lower().split():
            if word in _NO_UNIT:
                break
            found |= {_stem(word)} - _LOOSE
    return found


def _stem(word: str) -> str:
    word = word.removesuffix("'s").replace(",", "")
    for ending in ("ings", "ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)[:_STEM]
    return word.rstrip("e")[:_STEM] if len(word) > 3 else word
