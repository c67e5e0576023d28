"""The reasoning in what a model wrote: what stands between the marks of a thought, or all of it."""

from dataclasses import dataclass
from typing import Literal

THOUGHT_START = "<think>"
THOUGHT_END = "</think>"
MARKS = (
    (THOUGHT_START, THOUGHT_END),  # DeepSeek-R1, QwQ, Open-Reasoner-Zero
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|start_thought|>", "<|end_thought|>"),
    ("<|thought_start|>", "<|thought_end|>"),
)
# What opens the answer ends a thought that was never closed, as Open-Reasoner-Zero leaves it at times.
ANSWERS = ("<answer>", "<|begin_of_solution|>", "<solution>")
Unmarked = Literal["whole", "none"]


@dataclass(frozen=True)
class Thought:
    """The span `text[begin:end]` of the reasoning in a text, without the marks around it.

    Attributes:
        finished: whether the model ended it; False where the text breaks off inside.
    """

    begin: int
    end: int
    finished: bool


def thought_is_open(text: str) -> bool:
    """Whether `text` ends inside a `<think>` section: its last mark of a thought opens one."""
    return text.rfind(THOUGHT_START) > text.rfind(THOUGHT_END)


def after_thought(text: str) -> str:
    """The part of `text` after its last `</think>`; all of it where there is none."""
    return text.rpartition(THOUGHT_END)[2]


def thought(text: str, prompt: str = "", unmarked: Unmarked = "whole") -> Thought | None:
    """The first thought in a model's answer; it may be blank, as where a model was told not to think.

    A thought begins after the mark that opens it, or with the text where the prompt ends in an open thought, or where
    the first mark in the text is one that closes (the prompt opened it, as R1's chat template does). It ends before
    the first mark that closes it, else before the mark that opens the answer, else with the text.

    Args:
        text: what the model wrote.
        prompt: what it wrote it after; needed only to know an unfinished thought that the prompt opened.
        unmarked: what the thought of a text without any such mark is: the `whole` text up to the answer, or `none`.
    """
    opened = _opening(text, prompt)
    if opened is None:
        if unmarked == "none":
            return None
        return Thought(0, _answer(text, 0, len(text)), True)
    begin, closing = opened
    end = text.find(closing, begin)
    if end >= 0:
        return Thought(begin, end, True)
    end = _answer(text, begin, -1)
    return Thought(begin, end, True) if end >= 0 else Thought(begin, len(text), False)


def _opening(text: str, prompt: str) -> tuple[int, str] | None:
    """Where the thought begins, and the mark that closes it; None where there is no mark."""
    for opening, closing in MARKS:
        if prompt.rfind(opening) > prompt.rfind(closing):
            repeated = text.lstrip().startswith(opening)
            return (text.index(opening) + len(opening) if repeated else 0), closing
    found = []
    for opening, closing in MARKS:
        found += [(at, at + len(opening), closing) for at in [text.find(opening)] if at >= 0]
        found += [(at, 0, closing) for at in [text.find(closing)] if at >= 0]
    return min(found)[1:] if found else None


def _answer(text: str, begin: int, otherwise: int) -> int:
    """Where the answer's mark stands first, after `begin`."""
    return min((at for mark in ANSWERS if (at := text.find(mark, begin)) >= 0), default=otherwise)
