"""Scores of one answer, as the harness's `process_results` wants them.

Metrics: `exact_match`, `thought_unfinished` for any model's answers; `steered_fraction`, `changed_fraction` and
`truncated` only for answers of the `hybrid` model, which carry their generation. Another model's answers do not have
these, rather than a zero that nobody measured; for the same reason a policy that does not run the base model, as of arm
`thinking`, has no `changed_fraction`.
"""

from collections.abc import Callable
from typing import Any

from lm_eval_hybrid.decoding.trace import Generation
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
    """Whether the answer ends inside a thought, so that nothing in it is an answer yet.

    A thought that the prompt opened, which leaves no mark in the answer, is unfinished where the length limit or a stop
    string cut it; where the model itself ended, what it wrote counts.
    """
    if thought_is_open(response):
        return True
    generation: Generation | None = getattr(response, "generation", None)
    opened_by_prompt = getattr(response, "thought_open", False) and THOUGHT_END not in response
    return opened_by_prompt and generation is not None and generation.finish != "eos"


def _score(response: str, truth: str | None, same: Callable[[str, str], bool]) -> dict[str, float]:
    unfinished = thought_unfinished(response)
    answer = None if unfinished else final_answer(after_thought(response))
    right = answer is not None and truth is not None and same(answer, truth)
    scores = {"exact_match": float(right), "thought_unfinished": float(unfinished)}
    generation: Generation | None = getattr(response, "generation", None)
    if generation is not None:
        scores["steered_fraction"] = generation.steered_fraction
        scores["truncated"] = float(generation.finish == "length")
        if getattr(response, "compared", False):
            scores["changed_fraction"] = generation.changed_fraction
    return scores
