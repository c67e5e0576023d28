"""Recorded answers: questions, true answers and what models answered, read from files and scored anew.

Two formats are read. A JSON object with `tasks`, each with `question`, `correct_answer` and `model_answers` by model,
and perhaps `results.accuracy`, percentages by model that somebody judged; and samples files that the harness writes
with --log_samples, of any model, one JSON object a line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.common.thoughts import THOUGHT_END, THOUGHT_START, thought_is_open
from lm_eval_hybrid.results.runs import METRIC
from lm_eval_hybrid.results.statistics import Gap, gap
from lm_eval_hybrid.scoring.metrics import Grade, grade, truth_of
from lm_eval_hybrid.scoring.reader.reading import marked_answer

# A model that ends thoughts it did not begin was prompted with their beginning. This share of its answers is enough,
# since a length limit may cut most of them.
_PROMPTED = 0.1
_ROLES = ("base_model", "hybrid_model", "thinking_model")  # models of the paper's own files


@dataclass(frozen=True)
class RecordedTask:
    """A question (None if not recorded), its true answer, and the answers of the models that gave one."""

    question: str | None
    truth: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Recording:
    """A file's tasks in file order, and the share of right answers that it records by model, in [0, 1]."""

    path: Path
    tasks: tuple[RecordedTask, ...]
    judged: Mapping[str, float]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in file order."""
        return tuple(dict.fromkeys(model for task in self.tasks for model in task.answers))

    def thoughts_prompted(self, model: str) -> bool:
        """Whether a model's answers begin within a thought that its prompt opened."""
        texts = [task.answers[model] for task in self.tasks if model in task.answers]
        ends = sum(THOUGHT_END in text and THOUGHT_START not in text for text in texts)
        return ends >= max(1, _PROMPTED * len(texts))


@dataclass(frozen=True)
class Score:
    """The score of one model's answer to one task.

    Attributes:
        task: index of the task in the file, from 0.
        answer: as it was read; None if the text commits to none, or its thought is unfinished.
        unfinished: whether it ends inside a thought; such an answer is never right.
    """

    task: int
    model: str
    right: bool
    answer: str | None
    unfinished: bool


def scores(recording: Recording) -> Iterator[Score]:
    """Yield the score of every answer, task by task, by the same rule for all models."""
    prompted = {model: recording.thoughts_prompted(model) for model in recording.models}
    for index, task in enumerate(recording.tasks):
        for model, text in task.answers.items():
            unfinished = thought_is_open(text) or (prompted[model] and THOUGHT_END not in text)
            found = Grade(False, None) if unfinished else grade(text, task.truth, task.question)
            yield Score(index, model, found.right, found.answer, unfinished)


def recorded_gap(scores: Sequence[Score], seed: int) -> Gap | None:
    """The gap recovered on the tasks that base, hybrid and thinking model all answered; None without such tasks."""
    by_task: dict[int, dict[str, float]] = {}
    for score in scores:
        by_task.setdefault(score.task, {})[score.model] = float(score.right)
    paired = [models for models in by_task.values() if models.keys() >= set(_ROLES)]
    if not paired:
        return None
    base, hybrid, thinking = ([models[name] for models in paired] for name in _ROLES)
    return gap(base, hybrid, thinking, seed)


def read(path: Path) -> Recording:
    """Read a recording of either format; bytes that are not UTF-8 become replacement characters.

    Raises:
        HybridError: the file cannot be read, is of neither format, or has no answers.
    """
    recording = _samples(path) if path.suffix == ".jsonl" else _tasks_file(path)
    if not recording.models:
        raise HybridError(f"{path}: has no answers of a model; name another file")
    return recording


def _tasks_file(path: Path) -> Recording:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except OSError as error:
        raise HybridError(f"{path}: cannot be read ({error.strerror}); name a recording") from None
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: not JSON: {error}; name another file") from None
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, list) or not tasks:
        if not isinstance(content, dict):
            found = f"a {type(content).__name__}"
        else:
            found = "an empty list of tasks" if tasks == [] else f"an object of {', '.join(content) or 'nothing'}"
        raise HybridError(
            f"{path}: holds {found}; a recording must be a JSON object with a list of tasks; name another file, or a "
            "samples_*.jsonl"
        )
    results = content.get("results")
    accuracy = results.get("accuracy") if isinstance(results, dict) else None
    judged = {
        model: percent / 100
        for model, percent in (accuracy.items() if isinstance(accuracy, dict) else ())
        if isinstance(percent, int | float)
    }
    return Recording(path, tuple(_task(task, f"{path}, task {index}") for index, task in enumerate(tasks)), judged)


def _task(task: Any, where: str) -> RecordedTask:
    answers = task.get("model_answers") if isinstance(task, dict) else None
    truth = task.get("correct_answer") if isinstance(task, dict) else None
    if not isinstance(answers, dict) or not isinstance(truth, str | int | float):
        raise HybridError(
            f"{where}: found {', '.join(task) if isinstance(task, dict) else type(task).__name__}; must have a "
            "correct_answer and model_answers by model; fix the file"
        )
    question = task.get("question")
    texts = {str(model): text for model, text in answers.items() if isinstance(text, str)}
    return RecordedTask(question if isinstance(question, str) else None, _truth(str(truth)), texts)


def _samples(path: Path) -> Recording:
    tasks: dict[Any, RecordedTask] = {}
    judged: list[float] = []
    model = path.parent.name if path.stem.startswith("samples_") and path.parent.name else path.stem
    for number, sample in jsonl.rows(path, lenient=True):
        where = f"{path}:{number}"
        doc = sample.get("doc") if isinstance(sample, dict) else None
        if not isinstance(doc, dict):
            raise HybridError(f"{where}: has no doc, so it is no sample of the harness; name another file")
        key = sample.get("doc_id", number)
        if key in tasks:  # again, for another filter of the harness: the answer is the same
            continue
        target = sample.get("target")
        truth = _truth(target) if isinstance(target, str) and target.strip() else truth_of(doc)
        tasks[key] = RecordedTask(question_of(doc), truth, {model: _response(sample, where)})
        if isinstance(score := sample.get(METRIC), int | float):
            judged.append(float(score))
    complete = judged and len(judged) == len(tasks)
    return Recording(path, tuple(tasks.values()), {model: sum(judged) / len(judged)} if complete else {})


def _response(sample: dict[str, Any], where: str) -> str:
    """The first generated text; empty for a null, which an API model gives for a document that it did not answer."""
    found = sample.get("resps") or sample.get("filtered_resps")
    if isinstance(found, list) and found and isinstance(found[0], list):
        found = found[0]
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, list) and len(found) == 2:
        raise HybridError(
            f"{where}: holds log-likelihoods, as of a multiple-choice task, not generated texts; rescore reads answers "
            "of tasks that generate; take the task's own metric (such as acc) from its results file"
        )
    if found is None:
        return ""
    if not isinstance(found, str):
        raise HybridError(
            f"{where}: resps holds {type(found).__name__}, not a generated text; choose a task that generates"
        )
    return found


def _truth(text: str) -> str:
    return marked_answer(text) or text.strip()
