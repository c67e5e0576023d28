"""Scores of one answer, as the harness's `process_results` wants them.

Metrics: `exact_match`, `thought_unfinished` for any model's answers; `steered_fraction`, `changed_fraction` and
`truncated` only for answers of the `hybrid` model, which carry their generation. Another model's answers do not have
these, rather than a zero that nobody measured; for the same reason a policy that does not run the base model, as of arm
`thinking`, has no `changed_fraction`.

A task of yours is scored so by one line, `process_results: !function lm_eval_hybrid.scoring.metrics.any_task`, and
the metrics that you want in its `metric_list`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.common.thoughts import THOUGHT_END, thought_is_open
from lm_eval_hybrid.decoding.records import Finish, Generation
from lm_eval_hybrid.scoring.equality import mentions
from lm_eval_hybrid.scoring.reader.answers import answered, marked_answer, same_answer, same_expression, same_number

TRUTHS = ("answer", "Answer", "final_answer", "solution", "target")


def gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores against the number after `####` in `doc["answer"]`."""
    return _score(results[0], marked_answer(doc["answer"]), same_number, doc.get("question"))


def math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores against the expression `doc["answer"]`."""
    return _score(results[0], doc["answer"], same_expression, doc.get("problem"))


def any_task(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores against the truth that a document of any task has in one of `TRUTHS`.

    Raises:
        HybridError: where it has none.
    """
    return _score(results[0], truth_of(doc), same_answer, question_of(doc))


def truth_of(doc: Mapping[str, Any]) -> str:
    """The true answer of a document: what is boxed or follows `####` in the first of `TRUTHS` that it has, or all.

    Raises:
        HybridError: where it has none of these, or none that is text or a number.
    """
    for name in TRUTHS:
        value = doc.get(name)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int | float | str) and not isinstance(value, bool) and str(value).strip():
            return marked_answer(str(value)) or str(value).strip()
    raise HybridError(
        f"a document to score must have its true answer in {' or '.join(TRUTHS)}; found "
        f"{', '.join(map(str, doc)) or 'nothing'}; give the task a process_docs that names it so"
    )


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


def is_right(
    text: str,
    truth: str | None,
    same: Callable[[str, str], bool] = same_expression,
    question: str | None = None,
    finish: Finish | None = None,
    opened_by_prompt: bool = False,
) -> bool:
    """Whether the answer that a finished thought and what follows it commit to is the true one.

    Args:
        question: the posed one, if known.
        finish: how the text ended; None where nobody knows.
        opened_by_prompt: whether the prompt opened a thought.
    """
    if truth is None or unfinished(text, opened_by_prompt, finish):
        return False
    found = answered(text, question, None if finish is None else finish == "length")
    return found is not None and (same(found.answer, truth) or mentions(found.sentence, truth))


def _score(
    response: str, truth: str | None, same: Callable[[str, str], bool], question: str | None
) -> dict[str, float]:
    generation: Generation | None = getattr(response, "generation", None)
    opened = getattr(response, "thought_open", False)
    right = is_right(response, truth, same, question, generation and generation.finish, opened)
    scores = {"exact_match": float(right), "thought_unfinished": float(thought_unfinished(response))}
    if generation is not None:
        scores["steered_fraction"] = generation.steered_fraction
        scores["truncated"] = float(generation.finish == "length")
        if getattr(response, "compared", False):
            scores["changed_fraction"] = generation.changed_fraction
    return scores
