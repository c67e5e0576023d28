"""Scores of one answer, as the harness's `process_results` wants them.

Metrics: `exact_match`, `thought_unfinished` for any model's answers; `steered_fraction`, `changed_fraction` and
`truncated` only for answers of the `hybrid` model, which carry their generation. Another model's answers do not have
these, rather than a zero that nobody measured; for the same reason a policy that does not run the base model, as of arm
`thinking`, has no `changed_fraction`.
"""

from collections.abc import Callable
from typing import Any

from lm_eval_hybrid.decoding.trace import Finish, Generation
from lm_eval_hybrid.evaluation.answers import (
    THOUGHT_END,
    after_thought,
    final_answer,
    same_expression,
    same_number,
    thought_is_open,
)


def gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores against the number after `####` in `doc["answer"]`."""
    return _score(results[0], final_answer(doc["answer"]), same_number)


def math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores against the expression `doc["answer"]`."""
    return _score(results[0], doc["answer"], same_expression)


def thought_unfinished(response: str) -> bool:
    """Whether the answer ends inside a thought, as far as it says how it came to be."""
    generation: Generation | None = getattr(response, "generation", None)
    return unfinished(response, getattr(response, "thought_open", False), generation and generation.finish)


def unfinished(text: str, opened_by_prompt: bool, finish: Finish | None) -> bool:
    """Whether an answer ends inside a thought, so that nothing in it is an answer yet.

    A thought that the prompt opened, which leaves no mark in the answer, is unfinished where the length limit or a stop
    string cut it; where the model itself ended, or nobody knows, what it wrote counts.
    """
    if thought_is_open(text):
        return True
    return opened_by_prompt and THOUGHT_END not in text and finish not in (None, "eos")


def is_right(text: str, truth: str | None, same: Callable[[str, str], bool] = same_expression) -> bool:
    """Whether the answer that a finished thought and what follows it end in is the true one."""
    answer = final_answer(after_thought(text))
    return answer is not None and truth is not None and same(answer, truth)


def _score(response: str, truth: str | None, same: Callable[[str, str], bool]) -> dict[str, float]:
    open_still = thought_unfinished(response)
    right = not open_still and is_right(response, truth, same)
    scores = {"exact_match": float(right), "thought_unfinished": float(open_still)}
    generation: Generation | None = getattr(response, "generation", None)
    if generation is not None:
        scores["steered_fraction"] = generation.steered_fraction
        scores["truncated"] = float(generation.finish == "length")
        if getattr(response, "compared", False):
            scores["changed_fraction"] = generation.changed_fraction
    return scores
