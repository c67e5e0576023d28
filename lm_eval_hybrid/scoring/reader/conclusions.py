"""Sentences that conclude what was asked, in solutions that mark no answer."""

import re

from lm_eval_hybrid.scoring.notation import plain, tight
from lm_eval_hybrid.scoring.reader.asking import Ask
from lm_eval_hybrid.scoring.reader.values import FITS, NEW, Value, stated

_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|consequently|accordingly|in conclusion|in total|in summary|to summari[sz]e|finally|"
    r"overall|altogether|conclude|it follows|the (?:solutions?|results?)\b.{,40}?\b(?:is|are))\b"
    r"|\\therefore|∴|^\W*So\b",
    re.IGNORECASE,
)
_LEADS = re.compile(r"\b(?:so|this means|we (?:get|have|find|found|obtain))\b", re.IGNORECASE)
_GOES_ON = re.compile(r"(?:This|That|It|Which)\b(?:\s\w+)?\s+(?:is|equals|gives|simplifies to)\s+(?:\w+\s)?[-$\\\d(]")
# What speaks for a sentence, in shares of the asked words that it might have.
_CONCLUDING, _LEADING, _LAST, _AGAIN = 0.35, 0.15, 0.15, 0.08
_UNASKED = 0.25  # for a conclusion, where nobody knows what is asked
_NEAR = 0.2  # as good: of these the last counts
_ENOUGH, _LITTLE = 0.5, 0.2  # for a sentence of a text that broke off; for one that says `therefore`
_STUCK = 6  # sentences of one value at the end
_MOST = 400  # sentences looked at


def concluded(said: list[str], asked: Ask, off: bool) -> tuple[str, str] | None:
    """The value that sentences conclude most and best, and the last of these sentences; None where none concludes.

    Args:
        off: whether the text broke off, so that its last sentence is no conclusion by being the last.
    """
    if off and (found := _stuck(said, asked)) is not None:
        return found
    # What is said again and again until a text breaks off adds nothing.
    rated = _rated((list(dict.fromkeys(said)) if off else said)[-_MOST:], asked, off)
    if not rated:
        return None
    groups: dict[str, list[tuple[float, int, str, str]]] = {}
    for each in rated:
        groups.setdefault(tight(plain(each[2])).rpartition("=")[2], []).append(each)
    ranked = [(max(group)[0] + _AGAIN * min(len(group) - 1, 3), max(group)) for group in groups.values()]
    best = max(weight for weight, _ in ranked)
    _, _, answer, sentence = max((each for weight, each in ranked if weight >= best - _NEAR), key=lambda each: each[1])
    return answer, sentence


def in_words(said: list[str], asked: Ask) -> str | None:
    """The last of the sentences that have most of what is asked and conclude, whatever they state."""
    rated = [
        (asked.match(each) + _CONCLUDING * bool(_CONCLUDES.search(each)), place)
        for place, each in enumerate(said[-_MOST:])
    ]
    return said[-_MOST:][max(rated)[1]] if rated else None


def concludes(sentence: str) -> bool:
    """Whether a sentence says that it concludes."""
    return _CONCLUDES.search(sentence) is not None


def _rated(said: list[str], asked: Ask, off: bool) -> list[tuple[float, int, str, str]]:
    """Weight, place, value and sentence of each that may conclude."""
    found = []
    before, closing = 0.0, None
    for place, sentence in enumerate(said):
        own, closest = asked.match(sentence), stated(sentence, asked)
        if closest is not None:
            match, value = closest
            match = max(match, before) if _GOES_ON.match(sentence) else match
            mark = _CONCLUDING if concludes(sentence) else _LEADING if _LEADS.search(sentence) else 0.0
            last = place == len(said) - 1
            if value.new:
                closing = (0.0, place, value.text, sentence)
            if mark == _CONCLUDING and not asked.question:
                match = _UNASKED
            if _may(match, mark, value, off, last):
                weight = match + mark + NEW * value.new + FITS * value.fits
                weight += _LAST * (last and not off and "=" in sentence)
                weight -= NEW * (not value.new and not mark and (not last or sentence.startswith("This")))
                found.append((weight, place, value.text, sentence))
        before = own
    if not found:
        return [] if off or closing is None else [closing]
    if not off:
        found[-1] = (found[-1][0] + _LAST, *found[-1][1:])
    return found


def _may(match: float, mark: float, value: Value, off: bool, last: bool) -> bool:
    if not mark and not value.new:
        return match >= _ENOUGH and not off
    if not off:
        return True
    return match >= (_LITTLE if mark == _CONCLUDING else _ENOUGH) or (mark == _CONCLUDING and last)


def _stuck(said: list[str], asked: Ask) -> tuple[str, str] | None:
    """The one new value that the last sentences of a text say over and over."""
    last = said[-_STUCK:]
    if len(last) < _STUCK or len(set(last)) > 2:
        return None
    values = [found[1] for each in last if (found := stated(each, asked)) is not None and found[1].new]
    same = len(values) == len(last) and len({tight(plain(each.text)) for each in values}) == 1
    return (values[-1].text, last[-1]) if same else None
