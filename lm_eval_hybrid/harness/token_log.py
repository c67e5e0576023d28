"""The tokens file: a line per document, a record per token, beside the harness's samples file.

The harness keeps only an answer's text. Where it saves samples (`--log_samples` with `--output_path`) this module
saves tokens_<task>_<date>.jsonl next to samples_<task>_<date>.jsonl.
"""

import functools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA
from lm_eval_hybrid.harness.records import HybridAnswer

_log = logging.getLogger(__name__)


def install() -> None:
    """Have the harness save tokens with samples. Idempotent; other models' samples are saved as before."""
    save = EvaluationTracker.save_results_samples
    if getattr(save, "saves_tokens", False):
        return

    @functools.wraps(save)
    def save_with_tokens(self: EvaluationTracker, task_name: str, samples: list[dict[str, Any]]) -> None:
        # Before the harness's own saving, which turns the answers into plain strings.
        try:
            _write(self, task_name, samples)
        except OSError as error:  # as the harness does: a run is not lost because a file cannot be written
            _log.warning("Could not save the tokens of %s: %s", task_name, error)
        save(self, task_name, samples)

    save_with_tokens.saves_tokens = True  # type: ignore[attr-defined]
    EvaluationTracker.save_results_samples = save_with_tokens


def _write(tracker: EvaluationTracker, task_name: str, samples: list[dict[str, Any]]) -> None:
    lines = _lines(task_name, samples)
    first = next(lines, None)
    date = getattr(tracker, "date_id", None)  # set with the results file, which comes first
    if first is None or not tracker.output_path or date is None:
        return
    path = Path(tracker.output_path)
    folder = path.parent if path.suffix == ".json" else path / str(tracker.general_config_tracker.model_name_sanitized)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"tokens_{task_name}_{date}.jsonl").open("w", encoding="utf-8") as file:
        file.write(first)
        file.writelines(lines)


def _lines(task_name: str, samples: Iterable[dict[str, Any]]) -> Iterator[str]:
    seen = set()
    for sample in samples:
        # A task with several filters has a sample per filter, all of one answer.
        answer = sample["resps"][0][0]
        if not isinstance(answer, HybridAnswer) or answer.generation is None or sample["doc_id"] in seen:
            continue
        seen.add(sample["doc_id"])
        line = {
            "schema_version": TOKENS_SCHEMA,
            "doc_id": sample["doc_id"],
            "task": task_name,
            "arm": answer.arm,
            "bundle": answer.bundle,
            "prompt": sample["arguments"][0][0],
            "text": answer,
            "finish": answer.generation.finish,
            "words": answer.words,
            "records": [asdict(record) for record in answer.generation.records],
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"
