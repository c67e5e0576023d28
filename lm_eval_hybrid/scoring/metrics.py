"""Metrics of one answer, for the `process_results` of a harness task.

`exact_match` and `thought_unfinished` hold for any model's answers. `steered_fraction`, `changed_fraction` and
`truncated` hold only for answers of the `hybrid` model, which carry their generation; other models' answers lack them,
rather than report a zero that nobody measured. For the same reason a policy without the base model, as in arm
`thinking`, reports no `changed_fraction`.

To score a task of your own, add `process_results: !function lm_eval_hybrid.scoring.metrics.any_task` to it, and list
the metrics in its `metric_list`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.common.thoughts import THOUGHT_END, thought_is_open
from lm_eval_hybrid.decoding.records import Finish, Generation
from lm_eval_hybrid.scoring.equality import names, same
from lm_eval_hybrid.scoring.reader.reading import marked_answer, read

TRUTHS = ("answer", "Answer", "final_answer", "solution", "target")


@dataclass(frozen=True)
class Grade:
    """Whether a text answers right, and the answer that was read in it; None where the text commits to none."""

    right: bool
    answer: str | None


def gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics against the number after `####` in `doc["answer"]`."""
    return _metrics(results[0], marked_answer(doc["answer"]), doc.get("question"))


def math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics against the expression `doc["answer"]`."""
    return _metrics(results[0], doc["answer"], doc.get("problem"))


def any_task(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics against the true answer in one of the fields `TRUTHS` of any task's document.

    Raises:
        HybridError: the document has none.
    """
    return _metrics(results[0], truth_of(doc), question_of(doc))


def truth_of(doc: Mapping[str, Any]) -> str:
    """The true answer of a document: what is boxed or follows `####` in the first of `TRUTHS` that it has, or all.

    Raises:
        HybridError: the document has none of these fields, or none that is text or a number.
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


def grade(text: str, truth: str, question: str | None = None, cut: bool | None = None) -> Grade:
    """Compare the answer that a text commits to, after its thought, with the true one.

    The answer is right where it equals the truth or, where the truth is words, where the text names it as the answer.

    Args:
        cut: whether a length limit ended the text; None where that is unknown.
    """
    found = read(text, question, cut)
    if found is None:
        return Grade(False, None)
    return Grade(same(found.answer, truth) or names(found.words, truth), found.answer)


def is_right(
    text: str,
    truth: str | None,
    question: str | None = None,
    finish: Finish | None = None,
    opened_by_prompt: bool = False,
) -> bool:
    """Whether a text ends its thought and then gives the true answer (see `grade`).

    Args:
        finish: how generation ended; None where unknown.
        opened_by_prompt: whether the prompt opened a thought.
    """
    if truth is None or unfinished(text, opened_by_prompt, finish):
        return False
    return grade(text, truth, question, None if finish is None else finish == "length").right


def unfinished(text: str, opened_by_prompt: bool, finish: Finish | None) -> bool:
    """Whether a text ends inside a thought, so that nothing in it is an answer yet.

    A thought that the prompt opened leaves no marker in the text. It is unfinished where the length limit or a stop
    string ended the text; where the model did, or where that is unknown, the text counts as an answer.
    """
    if thought_is_open(text):
        return True
    return opened_by_prompt and THOUGHT_END not in text and finish not in (None, "eos")


def _metrics(response: str, truth: str | None, question: str | None) -> dict[str, float]:
    generation: Generation | None = getattr(response, "generation", None)
    finish = None if generation is None else generation.finish
    opened = getattr(response, "thought_open", False)
    scores = {
        "exact_match": float(is_right(response, truth, question, finish, opened)),
        "thought_unfinished": float(unfinished(response, opened, finish)),
    }
    if generation is not None:
        scores["steered_fraction"] = generation.steered_fraction
        scores["truncated"] = float(generation.finish == "length")
        if getattr(response, "compared", False):
            scores["changed_fraction"] = generation.changed_fraction
    return scores
