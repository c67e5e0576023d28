"""The thought in a generated text: the reasoning between markers such as `<think>` and `</think>`."""

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
# A marker of the answer also ends a thought that was never closed; Open-Reasoner-Zero leaves some open.
ANSWERS = ("<answer>", "<|begin_of_solution|>", "<solution>")
Unmarked = Literal["whole", "none"]


@dataclass(frozen=True)
class Thought:
    """The span `text[begin:end]` of the reasoning in a text, without its markers.

    Attributes:
        finished: whether the model ended the thought; False where the text breaks off inside it.
    """

    begin: int
    end: int
    finished: bool


def thought_is_open(text: str) -> bool:
    """Whether `text` ends inside a thought: its last `<think>` comes after its last `</think>`."""
    return text.rfind(THOUGHT_START) > text.rfind(THOUGHT_END)


def after_thought(text: str) -> str:
    """The part of `text` after its last `</think>`; all of it where there is none."""
    return text.rpartition(THOUGHT_END)[2]


def thought(text: str, prompt: str = "", unmarked: Unmarked = "whole") -> Thought | None:
    """The first thought in a generated text; it may be blank, as where a model was asked not to think.

    A thought begins after its opening marker. It begins with the text where the prompt left a thought open, or where
    the first marker in the text is a closing one (R1's chat template opens the thought). It ends before the first
    closing marker, else before a marker of the answer, else with the text.

    Args:
        text: what the model generated.
        prompt: the prompt before it; needed only to recognize an unfinished thought that the prompt opened.
        unmarked: for a text without any marker, whether the `whole` text up to the answer is the thought, or `none`.
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
    """Where the thought begins, and its closing marker; None without markers."""
    for opening, closing in MARKS:
        if prompt.rfind(opening) > prompt.rfind(closing):
            repeated = text.lstrip().startswith(opening)
            return (text.index(opening) + len(opening) if repeated else 0), closing
    found = []
    for opening, closing in MARKS:
        found += [(at, at + len(opening), closing) for at in [text.find(opening)] if at >= 0]
        found += [(at, 0, closing) for at in [text.find(closing)] if at >= 0]
    return min(found)[1:] if found else None


def _answer(text: str, begin: int, default: int) -> int:
    """Where the first marker of the answer stands after `begin`."""
    return min((at for mark in ANSWERS if (at := text.find(mark, begin)) >= 0), default=default)
