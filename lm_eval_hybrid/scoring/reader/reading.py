"""The answer that a generated text commits to last, before it goes on to another question.

A text commits by a marker (a box, `####`, the word `answer`) or by a sentence that concludes what the question asks. A
text that ended by itself commits at the latest by its last sentence with a value; one that was cut off in the middle of
a derivation does not.
"""

import re
from dataclasses import dataclass

from lm_eval_hybrid.common.thoughts import after_thought
from lm_eval_hybrid.scoring.quantities import plain, tight
from lm_eval_hybrid.scoring.reader import question as questions
from lm_eval_hybrid.scoring.reader.markers import after_hashes, boxed, marked
from lm_eval_hybrid.scoring.reader.question import Question
from lm_eval_hybrid.scoring.reader.sentences import cut_off, headers, lines, poses, sentences, without_fragment
from lm_eval_hybrid.scoring.reader.stated_value import NEW, Value, stated

_FAULT = re.compile(r"\b(?:mistake|error|incorrect|wrong|miscalculat\w+)\b", re.IGNORECASE)
_CORRECTED = 0.75  # of the asked words, for a conclusion that stands against a marked answer
_SAME_QUESTION = 0.5  # of the asked words, in a sentence that poses the question again
_QUOTED = 25  # characters: a shorter sentence may be in a question by chance

_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|consequently|accordingly|in conclusion|in total|in summary|to summari[sz]e|finally|"
    r"overall|altogether|conclude|it follows|the (?:solutions?|results?)\b.{,40}?\b(?:is|are))\b"
    r"|\\therefore|∴|^\W*So\b",
    re.IGNORECASE,
)
_CONTINUES = re.compile(r"(?:This|That|It|Which)\b(?:\s\w+)?\s+(?:is|equals|gives|simplifies to)\s+(?:\w+\s)?[-$\\\d(]")
# What speaks for a sentence, as shares of the asked words.
_CONCLUDING, _LAST = 0.35, 0.15
_UNASKED = 0.25  # for a conclusion, where no question is known
_NEAR = 0.2  # conclusions within this of the best are as good, and the last of them counts
_ENOUGH, _LITTLE = 0.5, 0.2  # for a sentence of a text that was cut off; for one that says `therefore`
_MAX_SENTENCES = 400


@dataclass(frozen=True)
class Reading:
    """The answer of a text, as it stands there.

    Attributes:
        words: the words of the text in which an answer in words may be named: those that are marked as the answer, or
            the sentence that concludes.
    """

    answer: str
    words: str


def read(text: str, question: str | None = None, cut: bool | None = None) -> Reading | None:
    """The answer that a text commits to after its thought; None where it commits to none.

    Args:
        question: the question, if known; it tells conclusions from remarks.
        cut: whether a length limit ended the text; None where that is unknown and the text's end has to tell.
    """
    asked, text = questions.parse(question), lines(after_thought(text))
    for start in headers(text):
        # What follows a header answers another question, unless nothing before it answers this one.
        found = _read(text[:start].rstrip(), asked, False)
        if found is not None:
            return found
    return _read(text, asked, cut_off(text) if cut is None else cut)


def marked_answer(text: str) -> str | None:
    r"""The last `\boxed{}` or `####` answer of a reference solution, whichever comes later; None where it has none."""
    found = [each for each in (boxed(text), after_hashes(text)) if each is not None]
    return max(found)[1] if found else None


def _read(text: str, asked: Question, cut: bool) -> Reading | None:
    said = [each for each in sentences(without_fragment(text) if cut else text) if not _quotes(each, asked)]
    answers = {each: None if each.endswith("?") else marked(each, asked) for each in dict.fromkeys(said)}
    places = [place for place, each in enumerate(said) if answers[each] is not None]
    if places:
        end = next((place for place in range(places[0], len(said)) if _poses_another(said[place], asked)), len(said))
        last = max(place for place in places if place < end)
        return _correction(said[last + 1 : end], asked) or Reading(*answers[said[last]] or ("", ""))
    said = [each for each in said if not each.endswith("?")]
    found = _concluded(said, asked, cut)
    if asked.in_words and not cut and (sentence := _concluded_in_words(said, asked)) is not None:
        found = Reading(found.answer if found else sentence, sentence)
    return found


def _poses_another(sentence: str, asked: Question) -> bool:
    return poses(sentence) and asked.match(sentence) < _SAME_QUESTION


def _quotes(sentence: str, asked: Question) -> bool:
    return len(sentence) > _QUOTED and sentence in asked.text


def _correction(said: list[str], asked: Question) -> Reading | None:
    """The last conclusion after a sentence that admits a mistake in the marked answer before it."""
    fault = next((place for place, each in enumerate(said) if _FAULT.search(each)), len(said))
    for sentence in reversed(said[fault:]):
        closest = stated(sentence, asked)
        if closest is None or (asked.text and closest[0] < _CORRECTED):
            continue
        if closest[1].new and _CONCLUDES.search(sentence):
            return Reading(closest[1].text, sentence)
    return None


def _concluded(said: list[str], asked: Question, cut: bool) -> Reading | None:
    """The value that sentences conclude best; None where none concludes."""
    # What is repeated until a text is cut off adds nothing.
    rated = _rated((list(dict.fromkeys(said)) if cut else said)[-_MAX_SENTENCES:], asked, cut)
    if not rated:
        return None
    groups: dict[str, list[tuple[float, int, str, str]]] = {}
    for each in rated:
        groups.setdefault(tight(plain(each[2])).rpartition("=")[2], []).append(each)
    best = [max(group) for group in groups.values()]
    top = max(best)[0]
    _, _, answer, sentence = max((each for each in best if each[0] >= top - _NEAR), key=lambda each: each[1])
    return Reading(answer, sentence)


def _concluded_in_words(said: list[str], asked: Question) -> str | None:
    """The last of the sentences that have most of what is asked and conclude, whatever they state."""
    rated = [
        (asked.match(each) + _CONCLUDING * bool(_CONCLUDES.search(each)), place)
        for place, each in enumerate(said[-_MAX_SENTENCES:])
    ]
    return said[-_MAX_SENTENCES:][max(rated)[1]] if rated else None


def _rated(said: list[str], asked: Question, cut: bool) -> list[tuple[float, int, str, str]]:
    """Weight, place, value and sentence of each sentence that may conclude."""
    found = []
    before, closing = 0.0, None
    for place, sentence in enumerate(said):
        own, closest = asked.match(sentence), stated(sentence, asked)
        if closest is not None:
            match, value = closest
            match = max(match, before) if _CONTINUES.match(sentence) else match
            mark = _CONCLUDING if _CONCLUDES.search(sentence) else 0.0
            last = place == len(said) - 1
            if value.new:
                closing = (0.0, place, value.text, sentence)
            if mark and not asked.text:
                match = _UNASKED
            if _may_conclude(match, mark, value, cut, last):
                weight = match + mark + NEW * value.new + _LAST * (last and not cut and "=" in sentence)
                weight -= NEW * (not value.new and not mark and (not last or sentence.startswith("This")))
                found.append((weight, place, value.text, sentence))
        before = own
    if not found:
        return [] if cut or closing is None else [closing]
    if not cut:
        found[-1] = (found[-1][0] + _LAST, *found[-1][1:])
    return found


def _may_conclude(match: float, mark: float, value: Value, cut: bool, last: bool) -> bool:
    if not mark and not value.new:
        return match >= _ENOUGH and not cut
    if not cut:
        return True
    return match >= (_LITTLE if mark else _ENOUGH) or (mark > 0 and last)
