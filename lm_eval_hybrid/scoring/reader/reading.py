"""What a generated text answers to the question posed: the answer that it commits to last, before it runs on.

A text commits by a mark (a box, `####`, the word `answer`), or by a sentence that concludes what was asked. One that
ends by itself commits by its last sentence with a value at the latest; one that breaks off in the middle of a
derivation does not.
"""

import re
from dataclasses import dataclass

from lm_eval_hybrid.scoring.reader.asking import Ask, ask
from lm_eval_hybrid.scoring.reader.conclusions import concluded, concludes, in_words
from lm_eval_hybrid.scoring.reader.marks import marked
from lm_eval_hybrid.scoring.reader.runon import headers, poses
from lm_eval_hybrid.scoring.reader.sentences import broken, lines, sentences, unbroken
from lm_eval_hybrid.scoring.reader.values import stated

_FAULT = re.compile(r"\b(?:mistake|error|incorrect|wrong|miscalculat\w+)\b", re.IGNORECASE)
_CORRECTS = re.compile(r"\b(?:however|actually|but|wait|correct(?:ed|ion)?|instead)\b", re.IGNORECASE)
_CORRECTED = 0.75  # of the asked words, for a conclusion that stands against a marked answer
_SAME = 0.5  # of the asked words, for a question that is the posed one again
_SAID_BEFORE = 25  # characters: what is shorter may be in a question by chance


@dataclass(frozen=True)
class Reading:
    """The answer of a text, as it stands there, and the sentence in which it stands."""

    answer: str
    sentence: str


def read(text: str, question: str | None = None, cut: bool | None = None) -> Reading | None:
    """The answer that a text, thoughts aside, commits to; None where it commits to none.

    Args:
        question: the posed one, if known: it tells conclusions from what is said by the way.
        cut: whether a limit of length ended the text; None where nobody knows, and its end has to tell.
    """
    asked, text = ask(question), lines(text)
    for start in headers(text):
        # Whatever follows a header is another question's, unless nothing before it answers this one.
        found = _read(text[:start].rstrip(), asked, False)
        if found is not None:
            return found
    return _read(text, asked, broken(text) if cut is None else cut)


def _read(text: str, asked: Ask, off: bool) -> Reading | None:
    said = [each for each in sentences(unbroken(text) if off else text) if not _repeats(each, asked)]
    answers = {each: None if each.endswith("?") else marked(each, asked) for each in dict.fromkeys(said)}
    places = [place for place, each in enumerate(said) if answers[each] is not None]
    if places:
        end = next((place for place in range(places[0], len(said)) if _elsewhere(said[place], asked)), len(said))
        return _last_marked(said[:end], [place for place in places if place < end], answers, asked)
    said = [each for each in said if not each.endswith("?")]
    found = concluded(said, asked, off)
    if asked.in_words and not off and (sentence := in_words(said, asked)) is not None:
        found = (found[0] if found else sentence, sentence)
    return Reading(*found) if found else None


def _elsewhere(sentence: str, asked: Ask) -> bool:
    """Whether a sentence poses another question."""
    return poses(sentence) and asked.match(sentence) < _SAME


def _repeats(sentence: str, asked: Ask) -> bool:
    """Whether a sentence says what the question said."""
    return len(sentence) > _SAID_BEFORE and sentence in asked.question


def _last_marked(said: list[str], places: list[int], answers: dict[str, str | None], asked: Ask) -> Reading:
    """The last marked answer, unless a conclusion after it corrects it."""
    last = places[-1]
    if last - 1 in places and "box" in said[last - 1] and "box" not in said[last] and not _CORRECTS.search(said[last]):
        last -= 1  # said again, in plain words
    faults = [place for place in range(last + 1, len(said)) if _FAULT.search(said[place])]
    for sentence in reversed(said[faults[0] :] if faults else []):
        closest = stated(sentence, asked)
        if closest is None or (asked.question and closest[0] < _CORRECTED):
            continue
        if closest[1].new and concludes(sentence):
            return Reading(closest[1].text, sentence)
    return Reading(answers[said[last]] or "", said[last])
