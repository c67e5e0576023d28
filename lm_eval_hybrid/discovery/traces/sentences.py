r"""Sentences of a trace, as spans of its tokens.

A sentence ends

- with its line: the line's end, and the blank lines after it, belong to what they end, as tokenizers have it
  (".\n\n" is one token of Qwen's);
- within a line after `.`, `!`, `?` or an ellipsis with what closes behind it (quotes, brackets, `**`, `$`), where white
  space follows and nothing says that it goes on: an abbreviation, an initial, the number of a list's item, a
  factorial, a small letter after an ellipsis. That white space belongs to the next sentence, as in the token " We";
- after the full stops of scripts that put no space behind them.

It never ends within a formula, a LaTeX environment, code or the row of a table. What has neither letter nor digit (a
rule, a lone bracket) is no sentence of its own: it goes with the one before it.
"""

# ruff: noqa: RUF001  (stops and quotation marks of many scripts)
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

# What ends a line, in Unicode and for `str.splitlines`.
_BREAKS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_GAP = rf"[^\S{_BREAKS}]"  # white space within a line

# What stays whole. A kind ends its search where it opens again, so one that is left open costs neither time nor text.
_WHOLE = re.compile(
    r"""
      ^[ \t]*(?P<fence>```|~~~).*\n(?:(?![ \t]*(?P=fence)).*\n)*[ \t]*(?P=fence)   # a block of code
    | ^[ \t]*\|.*\|[ \t\r]*$                                                    # the row of a table
    | (?<!`)`+[^`\n]+`+
    | \\begin\{(?P<name>\w+\*?)\}(?s:(?!\\(?:begin|end)\{(?P=name)\}).){0,9999}\\end\{(?P=name)\}
    | \\\[(?:[^\\]|\\(?![][()]))*\\\]
    | \\\((?:[^\\]|\\(?![][()]))*\\\)
    | (?<!\\)\$\$(?:[^$\\]|\\(?s:.))+\$\$
    | (?<![\\$])\$(?![\s$])(?:[^$\\\n]|\\.)*(?<!\s)\$(?!\d)                     # but not "$5 and $6"
    | \\[A-Za-z]+\{[^{}\n]*\}                                                 # \text{Mr. X}
    """,
    re.VERBOSE | re.MULTILINE,
)
# Where a sentence may end: with a line, at a stop before a word, at a stop that needs no space behind it.
_END = re.compile(
    rf"""
      [{_BREAKS}](?:\s*[{_BREAKS}])?
    | (?<![.!?…])(?P<stop>[.!?…]+)(?P<closing>(?:["'’”»)\]}}*_`$]|\\[)\]])*)(?={_GAP}+(?P<next>\S{{1,20}}))
    | (?<![。！？｡।॥؟۔])[。！？｡।॥؟۔]+["'’”»)\]」』】》）]*(?={_GAP}*\S)
    """,
    re.VERBOSE,
)

_NEVER_FIRST = frozenset(",;:.!?)]}=+/|&^%~<>×·÷≈≠≤≥")
_OPENING = "([{\"'‘“«*_`"  # may stand before a sentence's first letter
_QUOTED = re.compile(r"[\"'’”»)\]](?<!\\.)")
_FACTORIAL = re.compile(r"(?:\d|\b[A-Za-z]|[)}])$")
_MARKER = re.compile(
    r"\s*[-*+•#>(\[_]*\s*"
    r"(?:(?:Step|Case|Part|Example|Problem|Question|Method|Option|Approach|Way|Theorem|Lemma|Rule)\s+)?"
    r"(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})"
)
_LAST_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*$")
_DOTTED = re.compile(r"[A-Za-z]{1,2}(?:\.[A-Za-z]{1,2})+")  # U.S, Ph.D, p.m
_NAME = re.compile(r"[A-Z]\.\s+$|(?:^|[\s(\"'“‘])([A-Z][a-z]+)\s+$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A full stop after these never ends a sentence,
_TITLES = _words("Mr Mrs Ms Dr Prof St Mt")
_GOES_ON = _words("e.g i.e vs cf viz approx resp w.r.t s.t a.k.a incl esp")
# after these not where a number follows,
_NUMBERED = _words(
    "fig figs eq eqs eqn eqns sec secs ch vol pp thm ex prob art ref refs def lem cor prop para nos "
    "jan feb aug sept oct nov dec"
)
# after these not where a number or a small letter follows.
_MAY_END = _words("etc al inc ltd co corp jr sr ft lb lbs oz hr hrs min mins sq yr yrs mi avg max dept est")
# Words that begin a sentence rather than go on a name: "in the U.S. The", but "the U.S. Army".
_OPENERS = _words(
    "a after all also alternatively an and any are as at because but by can check compute consider does each first "
    "for from given hence here hmm how however i if in is it its let maybe next no not now oh okay on one or our "
    "perhaps second similarly since so some suppose that the their then there therefore these they this those thus "
    "to using wait we what when where which while why with yes you"
)


@dataclass(frozen=True)
class Sentence:
    """A sentence and its tokens: `ids[begin:end]` of the text it stands in."""

    text: str
    begin: int
    end: int


def split(text: str, token_ends: Sequence[int], begin: int = 0, end: int | None = None) -> list[Sentence]:
    """The sentences of a text, or of `text[begin:end]` as if it stood alone.

    A token belongs to the sentence that its last character is in. So each token that ends within a sentence is in
    exactly one, and a sentence's tokens write its text but for a token across one of its two boundaries: across the
    first, it brings along the end of what is before; across the last, it is the next sentence's. A sentence in which
    no token ends is none.

    Args:
        text: the text.
        token_ends: where each of its tokens ends, as a character offset; a token that is only a part of a character
            ends with it.
        begin, end: character offsets.
    """
    end = len(text) if end is None else end
    bounds = [begin + bound for bound in _ends(text[begin:end])]
    if begin:
        bounds.insert(0, begin)
    before = 1 if begin else 0  # stretches that are not in question
    owners = [bisect_left(bounds, last) for last in accumulate(token_ends, max)]
    sentences = []
    for owner, tokens in groupby(range(len(owners)), key=owners.__getitem__):
        if not before <= owner < len(bounds):
            continue
        span = list(tokens)
        words = text[bounds[owner - 1] if owner else 0 : bounds[owner]]
        if words.strip():
            sentences.append(Sentence(words, span[0], span[-1] + 1))
    return sentences


def _ends(text: str) -> list[int]:
    """Where the sentences of a text end, in order; the last is the text's own end."""
    kept: list[int] = []
    first = 0
    for last in [*_candidates(text), len(text)]:
        words = text[first:last]
        if kept and words and not any(map(str.isalnum, words)):
            kept.pop()
        kept.append(last)
        first = last
    return kept


def _candidates(text: str) -> Iterator[int]:
    """Where sentences end before the text does, those without letter or digit among them."""
    wholes = _WHOLE.finditer(text)
    whole = next(wholes, None)
    first = 0  # of the sentence being read
    for match in _END.finditer(text):
        while whole and whole.end() <= match.start():
            whole = next(wholes, None)
        # What closes a formula may close the sentence as well: $x = 3.$
        within = whole is not None and whole.start() <= match.start() and match.end() < whole.end()
        if not within and (match["stop"] is None or _is_end(text, first, match)):
            first = match.end()
            yield first


def _is_end(text: str, first: int, match: re.Match[str]) -> bool:
    """Whether the sentence from `first` on ends with `match`, a stop within a line."""
    stop, following = match["stop"], match["next"]
    if following[0] in _NEVER_FIRST or following == "*":
        return False
    word = following.lstrip(_OPENING)
    small = word[:1].islower()
    if small and _QUOTED.search(match["closing"]):
        return False  # "Why?" she asked.
    if "…" in stop or stop.startswith(".."):
        return word[:1].isalpha() and not small
    before = text[max(first, match.start() - 40) : match.start()]
    if stop == "!":
        return word[:1].isupper() or not _FACTORIAL.search(before)
    if stop != ".":
        return True
    return not (_MARKER.fullmatch(text, first, match.start()) or _goes_on(before, following, word))


def _goes_on(before: str, following: str, word: str) -> bool:
    """Whether the full stop after `before` is that of an abbreviation or an initial within a sentence.

    Args:
        following: what comes after it; `word` is the same from its first letter on.
    """
    found = _LAST_WORD.search(before)
    if found is None:
        return False
    last, rest = found[0], before[: found.start()]
    key, next_word = last.lower(), re.match(r"\w*", word)[0]
    number, small = next_word[:1].isdigit(), next_word[:1].islower()
    if last in _TITLES or key in _GOES_ON:
        return True
    if last == "No":
        return number and bool(rest.strip())  # at a sentence's beginning it is an answer
    if key in _NUMBERED:
        return number or (last[0].isupper() and following[0] in "($\\")
    if key in _MAY_END or (last.islower() and _DOTTED.fullmatch(last)):
        return number or small
    named = next_word[:1].isupper() and next_word.lower() not in _OPENERS
    if _DOTTED.fullmatch(last):
        return named or small
    return len(last) == 1 and last.isupper() and _is_initial(rest, word, named)


def _is_initial(rest: str, word: str, named: bool) -> bool:
    """Whether a capital letter with a full stop, between `rest` and `word`, is part of a name: J. K. Rowling.

    Args:
        named: `word` may go on a name.
    """
    if re.match(r"[A-Z]\.", word):
        return True
    before = _NAME.search(rest)
    # Also "Job A. Job B", which is no name.
    return named and before is not None and not (before[1] and word.startswith(before[1]))
