"""Additions to the harness's output folder: a record per generated token, and a folder name that tells runs apart.

The harness keeps only an answer's text. Where it saves samples (`--log_samples` with `--output_path`), this module
saves tokens_<task>_<date>.jsonl next to samples_<task>_<date>.jsonl, one line per document. The harness names the
folder after `pretrained=`, which model hybrid does not have; this module names it after bundle and arm.
"""

import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import sanitize_model_name, simple_parse_args_string

from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA
from lm_eval_hybrid.harness.records import HybridAnswer

_log = logging.getLogger(__name__)


def install() -> None:
    """Make the harness save tokens files with its samples, and name the folder. Other models' files are as before.

    Calling it again changes nothing.
    """
    save = EvaluationTracker.save_results_samples
    if getattr(save, "saves_tokens", False):
        return

    @functools.wraps(save)
    def save_with_tokens(self: EvaluationTracker, task_name: str, samples: list[dict[str, Any]]) -> None:
        # Before the harness saves the samples, since that turns the answers into plain strings.
        try:
            _write(self, task_name, samples)
        except OSError as error:  # as in the harness, a file that cannot be written does not end the run
            _log.warning("Could not save the token records of %s: %s", task_name, error)
        save(self, task_name, samples)

    save_with_tokens.saves_tokens = True  # type: ignore[attr-defined]  # marks a function object
    EvaluationTracker.save_results_samples = save_with_tokens

    log = GeneralConfigTracker.log_experiment_args

    @functools.wraps(log)
    def log_with_name(self: GeneralConfigTracker, model_source: str, model_args: Any, *rest: Any, **named: Any) -> None:
        log(self, model_source, model_args, *rest, **named)
        if model_source == "hybrid":
            self.model_name = folder_name(model_args)
            self.model_name_sanitized = sanitize_model_name(self.model_name)

    GeneralConfigTracker.log_experiment_args = log_with_name


def folder_name(model_args: str | Mapping[str, Any] | None) -> str:
    """BUNDLE__ARM, from model hybrid's arguments; the last part of a bundle that is given as a path."""
    given = simple_parse_args_string(model_args) if isinstance(model_args, str) else dict(model_args or {})
    bundles = given.get("behaviors") or "embedded"
    names = str(bundles).strip("[]").split(",") if isinstance(bundles, (str, Path)) else [str(each) for each in bundles]
    return f"{'+'.join(Path(name.strip()).name for name in names)}__{given.get('arm') or 'hybrid'}"


def _write(tracker: EvaluationTracker, task_name: str, samples: list[dict[str, Any]]) -> None:
    lines = _lines(task_name, samples)
    first = next(lines, None)
    date = getattr(tracker, "date_id", None)  # set when the results file is saved, which happens first
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
        # A task with several filters has one sample for each filter, all with the same answer.
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
