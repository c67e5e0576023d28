"""When two mathematical answers are equal.

Rules apply in turn, each to one kind of answer: choices, words, numbers, equations, lists, matrices. The first rule
that knows the kind decides, so that brackets, order and units count as readers mean them; rules for answers with
members compare these in the same way. math_verify does the mathematics of what no rule knows.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from lm_eval_hybrid.scoring.quantities import clock, enclosed, parts, plain, quantity, tight, without_unit
from lm_eval_hybrid.scoring.verifier import verified

Rule = Callable[[str, str], bool | None]

_MAX_CHARACTERS = 4000  # of an answer
_MAX_WORDS = 12  # of an answer in words
_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")
_CHOSEN = re.compile(
    r"(?:(?i:option|choice|answer)\b\W*)?(?:\(\s*([A-Z])\s*\)|([A-Z])(?:[).:]|$)|([B-Z])\s).*", re.DOTALL
)
_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ '-]+[A-Za-z]+)*")
_NEGATION = re.compile(r"\b(?:not|no|nor|neither|or|non)\b", re.IGNORECASE)
_CONTRAST = r"\b(?:than|unlike|instead of|rather)\b"
_NOTHING = re.compile(
    r"\\emptyset|\\\{\s*\\\}|(?:there (?:is|are) )?no (?:such )?(?:real )?(?:solutions?|roots?|values?|numbers?)|none"
    r"|(?:the )?empty set",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"\(?\s*(\w*\d\w*?)\s*\)?\s*(?:_\s*[{(\s]*|\(?(?:in )?base[ -]?)(\w+)[\s})]*")
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_EQUALS = r"(?<![\\<>!:=])=(?!=)|\\equiv(?![a-z])"
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt)(?![a-z])")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()]*\))?|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)|\|\w+\|")
_MEMBER = re.compile(r"^(?:[A-Za-z]|\\[a-z]+)\s*\\in(?![a-z])\s*")
_UNION = r"\\cup(?![a-z])"
_COMMA = r",(?:\s*(?:and|or)\b)?|;|\b(?:and|or)\b"
_LIST = r",(?!\d{3}(?!\d))|;|\b(?:and|or)\b"  # no thousands
_MATRIX = re.compile(r"\\begin\s*\{(?:[pbvBV]?(?:small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\s*\{\w+\}", re.DOTALL)
_LETTER = re.compile(r"\\[a-zA-Z]+|(?P<variable>[A-Za-z])")
_CONSTANTS = frozenset("ei")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\\circ")


def same(answer: str, truth: str) -> bool:
    """Whether an answer equals the true one, as a careful reader takes both. Never raises for what they hold.

    Not symmetric: an answer may leave out what its question says, such as a name (`x =`), a unit or a numeral's base.
    """
    if max(len(answer), len(truth)) > _MAX_CHARACTERS:
        return answer == truth
    return _same(plain(answer), plain(truth))


def names(sentence: str, truth: str) -> bool:
    """Whether the truth is a word or a letter among choices, and a sentence names it without a negation."""
    text, truth = plain(sentence[:_MAX_CHARACTERS]), plain(truth)
    if _CHOICE.fullmatch(truth):
        return set(re.findall(r"\(\s*([A-Z])\s*\)", text)) == {truth.strip("()")}
    if not _WORDS.fullmatch(truth):
        return False
    found = re.search(rf"\b{re.escape(truth)}\b", re.split(_CONTRAST, text)[0], re.IGNORECASE)
    return found is not None and not _NEGATION.search(text)


@lru_cache(maxsize=20_000)
def _same(answer: str, truth: str) -> bool:
    if not answer or not truth:
        return False
    if tight(answer) == tight(truth):
        return True
    verdicts = (rule(answer, truth) for rule in _RULES)
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _choices(answer: str, truth: str) -> bool | None:
    """A letter among choices, such as (C)."""
    meant, chosen = _CHOICE.fullmatch(truth), _CHOSEN.fullmatch(answer)
    return meant[meant.lastindex or 0] == chosen[chosen.lastindex or 0] if meant and chosen else None


def _nothing(answer: str, truth: str) -> bool | None:
    """No solution, in words or as the empty set."""
    if not _NOTHING.fullmatch(truth):
        return None
    return _NOTHING.fullmatch(answer) is not None


def _words(answer: str, truth: str) -> bool | None:
    """Words, such as names. The answer may say more, unless it negates."""
    if not _WORDS.fullmatch(truth):
        return None
    negated = _NEGATION.search(answer) and not _NEGATION.search(truth)
    if (
        not negated
        and len(answer.split()) <= _MAX_WORDS
        and re.search(rf"\b{re.escape(truth)}(?:e?s)?\b", answer, re.IGNORECASE)
    ):
        return True
    return None if len(truth) < 4 else False  # short ones may be products of variables


def _clocks(answer: str, truth: str) -> bool | None:
    """Times of day. An answer may leave out a.m. or p.m."""
    said, meant = clock(answer), clock(truth)
    if said is None or meant is None:
        return None
    return said[:2] == meant[:2] and (said[2] or meant[2]) == (meant[2] or said[2])


def _numbers(answer: str, truth: str) -> bool | None:
    """Numbers. Units do not count."""
    mine, its = quantity(answer), quantity(truth)
    return None if mine is None or its is None else mine.equals(its)


def _numerals(answer: str, truth: str) -> bool | None:
    """Numerals of another base, which the answer may leave out."""
    meant = _numeral(truth)
    if meant is None:
        return None
    return (_numeral(answer) or (answer, meant[1])) == meant


def _numeral(text: str) -> tuple[str, int] | None:
    found = _NUMERAL.fullmatch(text)
    if not found:
        return None
    if found[2].lower() in _BASES:
        return found[1], _BASES.index(found[2].lower()) + 2
    return (found[1], int(found[2])) if re.fullmatch("[0-9]{1,2}", found[2]) else None


def _memberships(answer: str, truth: str) -> bool | None:
    r"""`x \in S` is S."""
    bare = _MEMBER.sub("", answer), _MEMBER.sub("", truth)
    return None if bare == (answer, truth) else _same(*bare)


def _approximations(answer: str, truth: str) -> bool | None:
    """A value and its rounding: either may be the true one."""
    said = parts(answer, r"\\approx(?![a-z])")
    return None if len(said) == 1 else any(_same(each, truth) for each in said if each)


def _equations(answer: str, truth: str) -> bool | None:
    """`x = 5` is 5 where the truth is no equation, and the other way round. Two equations may differ in form."""
    mine, its = parts(answer, _EQUALS), parts(truth, _EQUALS)
    if len(mine) == len(its) == 1 or any(len(parts(text, _LIST)) > 1 for text in (answer, truth)):
        return None
    if len(mine) == 1 or len(its) == 1:
        named = len(its) == 1 or _NAME.fullmatch(its[0])
        return named is not None and _same(mine[-1], its[-1])
    if _NAME.fullmatch(mine[0]) and tight(mine[0]) == tight(its[0]) and _same(mine[-1], its[-1]):
        return True
    return verified(answer, truth)


def _inequalities(answer: str, truth: str) -> bool | None:
    """Relations, and the sets that they describe."""
    if not any(_RELATION.search(text) for text in (answer, truth)):
        return None
    return verified(answer, truth)


def _unions(answer: str, truth: str) -> bool | None:
    """Unions of sets, in any order."""
    its = parts(truth, _UNION)
    mine = parts(answer, _UNION if len(its) == 1 else rf"{_UNION}|,?\s*\bor\b")
    return None if len(mine) == len(its) == 1 else _matched(mine, its)


def _matrices(answer: str, truth: str) -> bool | None:
    """Matrices by their entries. A column or row may be written as a tuple."""
    mine, its = _rows(answer), _rows(truth)
    if mine is None and its is None:
        return None
    if mine is None or its is None:
        flat = [_flat(rows) if rows else _members(text)[1] for rows, text in ((mine, answer), (its, truth))]
        return min(len(rows := mine or its or []), len(rows[0])) == 1 and _aligned(*flat)
    return [len(row) for row in mine] == [len(row) for row in its] and _aligned(_flat(mine), _flat(its))


def _rows(text: str) -> list[list[str]] | None:
    found = _MATRIX.fullmatch(text)
    return [parts(row, "&") for row in re.split(r"\\\\|\\cr(?![a-z])", found[1]) if row.strip()] if found else None


def _flat(rows: list[list[str]]) -> list[str]:
    return [entry for row in rows for entry in row]


def _lists(answer: str, truth: str) -> bool | None:
    """Tuples and intervals, where order and brackets count; sets and bare lists, where they do not."""
    (brackets, mine), (its_brackets, its) = _members(answer), _members(truth)
    if len(mine) == len(its) == 1:
        return None if (mine[0], its[0]) == (answer, truth) else _same(mine[0], its[0])
    if not its_brackets or its_brackets == "{}":
        return brackets in ("", its_brackets or brackets) and _matched(mine, its)
    return brackets in (its_brackets, "" if its_brackets == "()" else its_brackets) and _aligned(mine, its)


def _members(text: str) -> tuple[str, list[str]]:
    r"""The brackets around all of a text, and what commas separate in it. `a \pm b` is two members."""
    brackets, inside = enclosed(text)
    items = parts(inside, r",|;" if brackets else _COMMA)
    return brackets, [each for item in items if item for each in _signed(item)]


def _signed(item: str) -> list[str]:
    pair = [re.sub(r"\\pm(?![a-z])", sign, item).strip().removeprefix("+").strip() for sign in "+-"]
    return pair if pair[0] != pair[1] else [item]


def _expressions(answer: str, truth: str) -> bool | None:
    """All other answers, by math_verify, unless they cannot be equal: prose, or variables in only one of them."""
    mine, its = without_unit(_radians(answer)), without_unit(_radians(truth))
    if tight(mine) == tight(its):
        return True
    if len(re.findall(r"(?<!\\)\b[A-Za-z]{3,}", mine)) > 2 or bool(_variables(mine)) != bool(_variables(its)):
        return False
    return verified(mine, its)


def _radians(text: str) -> str:
    return _DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text) if _TRIGONOMETRY.search(text) else text


def _variables(text: str) -> set[str]:
    return {found["variable"] for found in _LETTER.finditer(text) if found["variable"]} - _CONSTANTS


def _aligned(mine: list[str], its: list[str]) -> bool:
    return len(mine) == len(its) and all(_same(a, b) for a, b in zip(mine, its, strict=True))


def _matched(mine: list[str], its: list[str]) -> bool:
    """Whether two lists hold the same in some order, repetitions aside."""
    return all(any(_same(a, b) for b in its) for a in mine) and all(any(_same(a, b) for a in mine) for b in its)


_RULES: tuple[Rule, ...] = (
    _choices,
    _nothing,
    _words,
    _clocks,
    _numbers,
    _numerals,
    _memberships,
    _approximations,
    _equations,
    _unions,
    _matrices,
    _inequalities,
    _lists,
    _expressions,
)
