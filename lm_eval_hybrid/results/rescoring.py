"""Recorded answers, scored anew, all models alike."""

from collections.abc import Iterator
from dataclasses import dataclass

from lm_eval_hybrid.common.thoughts import THOUGHT_END, thought_is_open
from lm_eval_hybrid.results.recordings import Recording
from lm_eval_hybrid.scoring.reader.answers import agrees, answered


@dataclass(frozen=True)
class Score:
    """One model's answer to one task.

    Attributes:
        task: its place in the file, from 0.
        answer: as it was read; None where the text commits to none, or its thought is unfinished.
        unfinished: whether it ends inside a thought; such an answer is never right.
    """

    task: int
    model: str
    right: bool
    answer: str | None
    unfinished: bool


def scores(recording: Recording) -> Iterator[Score]:
    """The score of every answer, task by task."""
    prompted = {model: recording.thoughts_prompted(model) for model in recording.models}
    for place, task in enumerate(recording.tasks):
        for model, text in task.answers.items():
            unfinished = thought_is_open(text) or (prompted[model] and THOUGHT_END not in text)
            found = None if unfinished else answered(text, task.question)
            right = found is not None and agrees(found, task.truth)
            yield Score(place, model, right, None if found is None else found.answer, unfinished)
