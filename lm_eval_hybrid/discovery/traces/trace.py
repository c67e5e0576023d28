r"""A reasoning trace, and its sentences as spans of tokens.

A sentence ends

- at the end of its line. The newline and the blank lines after it belong to the sentence that they end, because
  tokenizers keep them together (".\n\n" is one token of Qwen's);
- within a line, after `.`, `!`, `?` or an ellipsis and its closing marks (quotes, brackets, `**`, `$`), if white space
  follows and the sentence does not go on: after an abbreviation, an initial, the number of a list item, a factorial, or
  before a small letter after an ellipsis it does. The white space belongs to the next sentence, as in the token " We";
- after the full stops of scripts that put no space behind them.

It never ends within a formula, a LaTeX environment, code or a table row. Text with neither letter nor digit (a rule, a
lone bracket) is no sentence of its own; it belongs to the sentence before it.
"""

# ruff: noqa: RUF001  (stops and quotation marks of many scripts)
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby

# Line breaks, of Unicode and of `str.splitlines`.
_BREAKS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_GAP = rf"[^\S{_BREAKS}]"  # white space within a line

# Stretches that are never split. A match fails where its kind opens again, so an unclosed one costs no time or text.
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
# Candidate ends: a line break, a stop before a word, a stop that needs no space behind it.
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


# A full stop after these never ends a sentence;
_TITLES = _words("Mr Mrs Ms Dr Prof St Mt")
_GOES_ON = _words("e.g i.e vs cf viz approx resp w.r.t s.t a.k.a incl esp")
# after these it does not before a number;
_NUMBERED = _words(
    "fig figs eq eqs eqn eqns sec secs ch vol pp thm ex prob art ref refs def lem cor prop para nos "
    "jan feb aug sept oct nov dec"
)
# after these it does not before a number or a small letter.
_MAY_END = _words("etc al inc ltd co corp jr sr ft lb lbs oz hr hrs min mins sq yr yrs mi avg max dept est")
# Words that begin a sentence rather than continue a name: "in the U.S. The", but "the U.S. Army".
_OPENERS = _words(
    "a after all also alternatively an and any are as at because but by can check compute consider does each first "
    "for from given hence here hmm how however i if in is it its let maybe next no not now oh okay on one or our "
    "perhaps second similarly since so some suppose that the their then there therefore these they this those thus "
    "to using wait we what when where which while why with yes you"
)


@dataclass(frozen=True)
class Trace:
    """A prompt as the base model reads it, and the text that the thinking model wrote after its own form of it."""

    prompt: str
    text: str


def digest(traces: Iterable[Trace]) -> str:
    """sha256 (hex) of traces, which a bundle records as the digest of its data."""
    content = hashlib.sha256()
    for trace in traces:
        content.update(json.dumps(asdict(trace), sort_keys=True).encode())
    return content.hexdigest()


@dataclass(frozen=True)
class SentenceSpan:
    """A sentence and its tokens, `ids[begin:end]` of the text that contains it."""

    text: str
    begin: int
    end: int


def split_sentences(text: str, token_ends: Sequence[int], begin: int = 0, end: int | None = None) -> list[SentenceSpan]:
    """Split `text[begin:end]` into sentences, as if it stood alone.

    A token belongs to the sentence that contains its last character. So each token that ends within a sentence is in
    exactly one, and a sentence's tokens spell its text, except for a token across a boundary: at the first boundary it
    adds the end of the previous sentence, at the last it belongs to the next sentence. A sentence in which no token
    ends is left out.

    Args:
        token_ends: the character offset at which each token of `text` ends; a token that is part of a character ends
            with the character.
        begin, end: character offsets.
    """
    end = len(text) if end is None else end
    bounds = [begin + bound for bound in _ends(text[begin:end])]
    if begin:
        bounds.insert(0, begin)
    skipped = 1 if begin else 0  # the stretch before `begin`
    owners = [bisect_left(bounds, last) for last in accumulate(token_ends, max)]
    sentences = []
    for owner, tokens in groupby(range(len(owners)), key=owners.__getitem__):
        if not skipped <= owner < len(bounds):
            continue
        span = list(tokens)
        words = text[bounds[owner - 1] if owner else 0 : bounds[owner]]
        if words.strip():
            sentences.append(SentenceSpan(words, span[0], span[-1] + 1))
    return sentences


def _ends(text: str) -> list[int]:
    """Offsets at which the sentences of a text end, in order; the last is the end of the text."""
    ends: list[int] = []
    first = 0
    for last in [*_candidates(text), len(text)]:
        words = text[first:last]
        if ends and words and not any(map(str.isalnum, words)):
            ends.pop()
        ends.append(last)
        first = last
    return ends


def _candidates(text: str) -> Iterator[int]:
    """Offsets at which sentences end before the text does, those without letter or digit included."""
    wholes = _WHOLE.finditer(text)
    whole = next(wholes, None)
    first = 0  # offset of the current sentence
    for match in _END.finditer(text):
        while whole and whole.end() <= match.start():
            whole = next(wholes, None)
        # A stop that closes a formula may end the sentence as well: $x = 3.$
        within = whole is not None and whole.start() <= match.start() and match.end() < whole.end()
        if not within and (match["stop"] is None or _is_end(text, first, match)):
            first = match.end()
            yield first


def _is_end(text: str, first: int, match: re.Match[str]) -> bool:
    """Whether the sentence that begins at `first` ends with `match`, a stop within a line."""
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
    """Whether the full stop after `before` belongs to an abbreviation or an initial within a sentence.

    Args:
        following: the text after the stop; `word` is the same from its first letter on.
    """
    match = _LAST_WORD.search(before)
    if match is None:
        return False
    last, rest = match[0], before[: match.start()]
    key, next_word = last.lower(), re.split(r"\W", word, maxsplit=1)[0]
    number, small = next_word[:1].isdigit(), next_word[:1].islower()
    if last in _TITLES or key in _GOES_ON:
        return True
    if last == "No":
        return number and bool(rest.strip())  # at the start of a sentence, "No." is an answer
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
        named: whether `word` may continue a name.
    """
    if re.match(r"[A-Z]\.", word):
        return True
    before = _NAME.search(rest)
    # Also "Job A. Job B", which is no name.
    return named and before is not None and not (before[1] and word.startswith(before[1]))
