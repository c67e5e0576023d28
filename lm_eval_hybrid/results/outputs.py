"""Reads a folder of harness outputs.

A run of the harness writes `results_<date>.json` and, with --log_samples, `samples_<task>_<date>.jsonl`. Model `hybrid`
adds `tokens_<task>_<date>.jsonl`, a line per document with a record per generated token. Files of one run share their
folder and date. Folders are searched to any depth; of several runs of one arm on one task the newest counts.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS, leaves_alone
from lm_eval_hybrid.results.runs import (
    METRIC,
    SETTINGS,
    WITHOUT,
    ArmRun,
    Runs,
    ScoredDocument,
    TokenCounts,
    check_paired,
    parsed_lines,
    token_lines,
)

log = logging.getLogger(__name__)
# `--output_path name.json` names the results file after itself, hence any stem.
_RESULTS = re.compile(r".+_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.json")


@dataclass(frozen=True)
class _Output:
    """One task of one results file, before its samples are read."""

    arm: str
    task: str
    date: str
    path: Path
    results: dict[str, Any]


def read(folder: Path) -> Runs:
    """Read every run of model `hybrid` below `folder`.

    Raises:
        HybridError: no results, no samples, files that are not the harness's, a task that is not scored by exact
            match, or arms of a task that were run on different documents or with different models.
    """
    newest: dict[tuple[str, str], _Output] = {}
    for output in sorted(_outputs(folder), key=lambda output: output.date):
        former = newest.get((output.task, output.arm))
        if former:
            log.info("%s, arm %s: %s counts; older %s ignored", output.task, output.arm, output.path, former.path)
        newest[output.task, output.arm] = output
    if not newest:
        raise HybridError(
            f"{folder} has no results of model hybrid (results_*.json); run lm_eval --model hybrid with --output_path "
            "and --log_samples, or name another folder"
        )
    runs = [run for output in newest.values() for run in _runs(output)]
    order = {arm: position for position, arm in enumerate(ARMS)}
    runs.sort(key=lambda run: (run.task, order.get(run.arm, len(order)), run.arm))
    for task in {run.task for run in runs}:
        check_paired([run for run in runs if run.task == task])
    return Runs(tuple(runs))


def _arm_of(config: dict[str, Any]) -> str | None:
    """The arm in a results file's `config`, as `ArmRun.arm`; None if the model was not `hybrid`."""
    arm, left_out = config.get("hybrid_arm"), config.get("hybrid_without")
    return f"{WITHOUT}{', '.join(left_out)}" if arm == "hybrid" and left_out else arm


def _outputs(folder: Path) -> Iterator[_Output]:
    for path in sorted(folder.rglob("*.json")):
        name = _RESULTS.fullmatch(path.name)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)  # half-written
        if hidden or not name:
            continue
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            arm = _arm_of(results["config"])
            tasks = list(results["configs"])
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s is no results file of the harness; ignored", path)
            continue
        if arm is None:
            log.warning("%s is not a run of model hybrid; ignored", path)
            continue
        for task in tasks:
            yield _Output(arm, task, name["date"], path, results)


def _runs(output: _Output) -> Iterator[ArmRun]:
    """Read the samples of one task of one run; yields a run per filter."""
    samples_path = output.path.with_name(f"samples_{output.task}_{output.date}.jsonl")
    sidecar = output.path.with_name(f"tokens_{output.task}_{output.date}.jsonl")
    if not samples_path.is_file():
        raise HybridError(
            f"{samples_path.name} is missing beside {output.path}; samples are needed to pair documents; run again "
            "with --log_samples"
        )
    counts = dict(token_lines(sidecar, _counts)) if sidecar.is_file() else {}
    by_filter: dict[str, dict[int, ScoredDocument]] = {}
    for name, document in parsed_lines(samples_path, lambda line: _document(line, counts)):
        by_filter.setdefault(name, {})[document.doc_id] = document
    if not by_filter:
        raise HybridError(f"{samples_path} has no documents; run again with a larger --limit, or move these files away")
    config = output.results["config"]
    policy = config.get("hybrid_policy") or {}
    for name, found in by_filter.items():
        documents = tuple(document for _, document in sorted(found.items()))
        yield ArmRun(
            arm=output.arm,
            task=output.task if len(by_filter) == 1 else f"{output.task}:{name}",
            date=output.date,
            bundle=config.get("hybrid_bundle"),
            tensors=config.get("hybrid_tensors"),
            base=config.get("hybrid_base"),
            thinking=config.get("hybrid_thinking"),
            fingerprint=config.get("hybrid_fingerprint"),
            settings=_settings(output.arm, policy),
            seed=policy.get("seed"),
            limit=config.get("limit"),
            versions=_versions(output.results),
            tokens_per_second=(config.get("hybrid_totals") or {}).get("tokens_per_second"),
            steered_fraction=_fraction("steered", documents),
            changed_fraction=_fraction("changed", documents),
            documents=documents,
            samples=samples_path,
            sidecar=sidecar if sidecar.is_file() else None,
        )


def _document(line: dict[str, Any], counts: Mapping[int, TokenCounts]) -> tuple[str, ScoredDocument]:
    """(filter, document) of a line of a samples file."""
    if METRIC not in line:
        raise HybridError(
            f"the task is scored by {', '.join(line['metrics'])}; a comparison needs {METRIC}; choose such a task, run "
            "without --predict_only, or move these files away"
        )
    unfinished = line.get("thought_unfinished")
    return line["filter"], ScoredDocument(
        doc_id=line["doc_id"],
        doc_hash=line["doc_hash"],
        prompt_hash=line["prompt_hash"],
        exact_match=float(line[METRIC]),
        unfinished=None if unfinished is None else bool(unfinished),
        steered_fraction=line.get("steered_fraction"),
        changed_fraction=line.get("changed_fraction"),
        counts=counts.get(line["doc_id"]),
    )


def _counts(line: dict[str, Any]) -> tuple[int, TokenCounts]:
    """(doc_id, counts of its tokens)."""
    records = line["records"]
    steered = [record for record in records if record["steered"]]
    compared = all(record["base_choice"] is not None for record in steered)
    behaviors = Counter(record["behavior"] for record in steered if record["behavior"] is not None)
    changed = sum(record["changed"] for record in steered) if compared else None
    digest = hashlib.sha256(line["text"].encode(errors="replace")).hexdigest()
    return line["doc_id"], TokenCounts(len(records), len(steered), changed, behaviors, line["finish"], digest)


def _settings(arm: str, policy: dict[str, Any]) -> dict[str, str]:
    steers = policy.get("gate") != "never" and policy.get("emit") != "thinking"
    return {name: str(policy[name]) for name in SETTINGS if steers and name in policy and leaves_alone(arm, name)}


def _fraction(kind: Literal["steered", "changed"], documents: Sequence[ScoredDocument]) -> float | None:
    counts = [document.counts for document in documents if document.counts is not None]
    if len(counts) == len(documents):
        parts, whole = [getattr(one, kind) for one in counts], sum(one.tokens for one in counts)
        return None if None in parts or not whole else sum(parts) / whole
    scores = [getattr(document, f"{kind}_fraction") for document in documents]
    return None if None in scores else sum(scores) / len(scores)


def _versions(results: dict[str, Any]) -> dict[str, str]:
    """Package versions that the run recorded."""
    torch = re.match(r"PyTorch version: (\S+)", results.get("pretty_env_info") or "")
    recorded = {
        "lm_eval_hybrid": results["config"].get("hybrid_version"),
        "lm_eval": results.get("lm_eval_version"),
        "torch": torch and torch[1],
        "transformers": results.get("transformers_version"),
        "nnsight": results["config"].get("hybrid_nnsight_version"),
    }
    return {name: version for name, version in recorded.items() if version}
