"""Recorded answers: files of an evaluation's questions, true answers and what models answered.

Two formats are read. A JSON object with `tasks`, each with `question`, `correct_answer` and `model_answers` by model,
and perhaps `results.accuracy`, percentages by model that somebody judged; and the samples files that the harness writes
with --log_samples, of any model, one JSON object a line.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.common.thoughts import THOUGHT_END, THOUGHT_START
from lm_eval_hybrid.scoring.metrics import truth_of
from lm_eval_hybrid.scoring.reader.answers import marked_answer

METRIC = "exact_match"
# Of a model's answers. A model that ends thoughts which it does not begin was prompted with their beginning, however
# many of them a limit of length cut.
_PROMPTED = 0.1


@dataclass(frozen=True)
class Task:
    """A question, if recorded, its true answer, and what each model answered, those without an answer left out."""

    question: str | None
    truth: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Recording:
    """A file's tasks in its order, and the share of right answers by model that it records, in [0, 1]."""

    path: Path
    tasks: tuple[Task, ...]
    judged: Mapping[str, float]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order in which the file has them."""
        return tuple(dict.fromkeys(model for task in self.tasks for model in task.answers))

    def thoughts_prompted(self, model: str) -> bool:
        """Whether a model's answers begin within a thought that its prompt opened."""
        texts = [task.answers[model] for task in self.tasks if model in task.answers]
        ends = sum(THOUGHT_END in text and THOUGHT_START not in text for text in texts)
        return ends >= max(1, _PROMPTED * len(texts))


def read(path: Path) -> Recording:
    """Reads a recording of either format; bytes that are not UTF-8 become replacement characters.

    Raises:
        HybridError: for a file that cannot be read, is of neither format, or has no answers.
    """
    found = _samples(path) if path.suffix == ".jsonl" else _reference(path)
    if not found.models:
        raise HybridError(f"{path}: must have answers of a model; found none; name another file")
    return found


def _reference(path: Path) -> Recording:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except OSError as error:
        raise HybridError(f"{path}: cannot be read ({error.strerror}); name a recording") from None
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: not JSON: {error}; name another file") from None
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, list) or not tasks:
        raise HybridError(
            f"{path}: a recording must be a JSON object with a list of tasks; found {_kind(content, tasks)}; name "
            "another file, or a samples_*.jsonl"
        )
    results = content.get("results")
    accuracy = results.get("accuracy") if isinstance(results, dict) else None
    judged = {
        model: percent / 100
        for model, percent in (accuracy.items() if isinstance(accuracy, dict) else ())
        if isinstance(percent, int | float)
    }
    return Recording(path, tuple(_task(task, f"{path}, task {place}") for place, task in enumerate(tasks)), judged)


def _task(task: Any, where: str) -> Task:
    answers = task.get("model_answers") if isinstance(task, dict) else None
    truth = task.get("correct_answer") if isinstance(task, dict) else None
    if not isinstance(answers, dict) or not isinstance(truth, str | int | float):
        raise HybridError(
            f"{where}: must have a correct_answer and model_answers by model; found "
            f"{', '.join(task) if isinstance(task, dict) else type(task).__name__}; mend the file"
        )
    question = task.get("question")
    said = {str(model): text for model, text in answers.items() if isinstance(text, str)}
    return Task(question if isinstance(question, str) else None, _truth(str(truth)), said)


def _samples(path: Path) -> Recording:
    tasks: dict[Any, Task] = {}
    scores: list[float] = []
    model = path.parent.name if path.stem.startswith("samples_") and path.parent.name else path.stem
    for number, sample in jsonl.rows(path, lenient=True):
        where = f"{path}:{number}"
        doc = sample.get("doc") if isinstance(sample, dict) else None
        if not isinstance(doc, dict):
            raise HybridError(f"{where}: must be a sample of the harness, with its doc; found none; name another file")
        key = sample.get("doc_id", number)
        if key in tasks:  # again, for another filter of the harness: the answer is the same
            continue
        tasks[key] = Task(question_of(doc), _target(sample, doc), {model: _response(sample, where)})
        if isinstance(score := sample.get(METRIC), int | float):
            scores.append(float(score))
    judged = {model: sum(scores) / len(scores)} if scores and len(scores) == len(tasks) else {}
    return Recording(path, tuple(tasks.values()), judged)


def _target(sample: dict[str, Any], doc: dict[str, Any]) -> str:
    target = sample.get("target")
    return _truth(target) if isinstance(target, str) and target.strip() else truth_of(doc)


def _response(sample: dict[str, Any], where: str) -> str:
    found = sample.get("resps") or sample.get("filtered_resps")
    while isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, str):
        raise HybridError(
            f"{where}: must have a generated text in resps; found {type(found).__name__}; choose a task that generates"
        )
    return found


def _truth(text: str) -> str:
    return marked_answer(text) or text.strip()


def _kind(content: Any, tasks: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return "an empty list" if tasks == [] else f"an object of {', '.join(content) or 'nothing'}"
