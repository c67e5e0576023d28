"""What a question asks for, so that the sentence of a solution that answers it can be told from others."""

import re
from dataclasses import dataclass, field

_STOP = frozenset(
    """a an the of to in on at for by with from and or as is are was were be been do does did has have had will would can
    could should must may how many much what which who whom whose when where why find compute calculate determine
    evaluate express your answer if it its that this these those they them their he she his her him we you i there so
    then than after before into each value form simplest given such following please let not number total""".split()
)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\\[a-z]+|\d[\d,.]*\d|\d")
_ASKS = re.compile(
    r"\?|\b(?:find|compute|calculate|determine|evaluate|express|simplify|what|how|solve|convert|factor|write|enter)\b", re.IGNORECASE
)
_STARTS = re.compile(
    r"\b(?:how|what|find|compute|calculate|determine|evaluate|simplify|solve|convert|factor)\b|(?:^|, )(?:which|express)\b",
    re.IGNORECASE,
)
_HOW_MANY = re.compile(r"\bhow many\s+((?:[A-Za-z-]+\s*){1,6})|\bin ([a-z]+)\s*\?|\bnumber of ((?:[A-Za-z-]+\s*){1,4})", re.IGNORECASE)
_AFTER_UNIT = frozenset(
    "does do did is are was were will would can could must should has have had be in of that if there from for to on with".split()
)
_LOOSE = frozenset("more fewer less total different possible other extra additional new".split())
_MONEY = re.compile(r"\bhow much (?:money|more money|profit|change|does .* (?:cost|pay|spend|earn|make|owe))|\bcost\b|\bprice\b|\bpaid?\b|\bspen[dt]\b|\bearn", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Ask:
    """What is asked: its words, stemmed; the words of the unit that a number is asked in; numbers that are given."""

    words: frozenset[str] = frozenset()
    unit: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    money: bool = False
    question: str = field(default="", repr=False)

    @property
    def tight(self) -> str:
        return "".join(self.question.split())

    def match(self, clause: str) -> float:
        """Share of the asked words that a clause has, in [0, 1]; 0 where nothing is asked."""
        return len(self.words & stems(clause)) / len(self.words) if self.words else 0.0


def ask(question: str | None) -> Ask:
    """What a question asks in its last sentence that asks."""
    if not question:
        return Ask()
    flat = " ".join(re.sub(r"\[asy\].*?\[/asy\]", " ", question, flags=re.DOTALL).split())
    asking = [part for part in re.split(r"(?<=[.?!])[$\"')]*\s+(?=[A-Z$\\(])", flat) if _ASKS.search(part)]
    last = next((part for part in reversed(asking) if "?" in part), asking[-1] if asking else flat)
    starts = [found.start() for found in _STARTS.finditer(last)]
    last = last[starts[-1] :] if starts else last
    last = re.sub(r"(?<=.{20}),? if\b.*", "", last)
    unit: set[str] = set()
    for found in _HOW_MANY.finditer(last):
        for word in (found[1] or found[2] or found[3]).lower().split():
            if word in _AFTER_UNIT:
                break
            unit |= {_stem(word)} - _LOOSE
    given = frozenset(each.replace(",", "") for each in _NUMBER.findall(flat))
    return Ask(frozenset(stems(last)), frozenset(unit), given, bool(_MONEY.search(last)), flat)


def stems(text: str) -> set[str]:
    """The words of a text that carry meaning, without their endings."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP}


def _stem(word: str) -> str:
    word = word.removesuffix("'s").replace(",", "")
    for ending in ("ings", "ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)[:5]
    return word.rstrip("e")[:5] if len(word) > 3 else word
