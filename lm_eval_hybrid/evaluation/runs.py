"""Reads a folder of harness outputs into runs that can be compared document by document.

The harness writes, per run, `results_<date>.json` and, with --log_samples, `samples_<task>_<date>.jsonl`;
model `hybrid` adds `tokens_<task>_<date>.jsonl`, a line per document with a record per generated token.
Files of one run share their folder and date. Folders are searched to any depth; of several runs of one arm
on one task the newest counts.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_hybrid.decoding.arms import ARMS, leaves_alone
from lm_eval_hybrid.decoding.trace import TOKENS_SCHEMA, TokenRecord
from lm_eval_hybrid.errors import HybridError

METRIC = "exact_match"
log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")
# Of the policy: what a bundle says, unless the user or the arm does.
SETTINGS = ("gate", "select", "coefficients", "windows")

# `--output_path name.json` names the results file after itself, hence any stem.
_RESULTS = re.compile(r".+_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.json")


@dataclass(frozen=True)
class Counts:
    """Tokens of one answer: generated, steered, changed (None where the base model was not run)."""

    tokens: int
    steered: int
    changed: int | None
    behaviors: frozenset[str]


@dataclass(frozen=True)
class Document:
    """How one arm did on one document. `counts` is None where the run wrote no token records."""

    doc_id: int
    doc_hash: str
    prompt_hash: str
    exact_match: float
    counts: Counts | None


@dataclass(frozen=True)
class Answer:
    """One generated answer with a record per token, as the run wrote it."""

    doc_id: int
    task: str
    arm: str
    prompt: str
    text: str
    finish: str
    records: tuple[TokenRecord, ...]


@dataclass(frozen=True)
class ArmRun:
    """One arm on one task.

    Attributes:
        task: the harness's name; followed by ":<filter>" where the task scores several filters.
        date: of the results file, as in its name.
        tensors: sha256 of the bundle's tensors; None where not recorded, or not those of one bundle as it is.
        base, thinking: what identifies the models; None where not recorded, or not run.
        settings: how it steers, where that is the bundle's or the user's choice and not the arm's; empty where it
            does not steer.
        tokens_per_second: generated tokens over the generation time of the whole run, all its tasks together;
            None where it generated none.
        steered_fraction, changed_fraction: of all generated tokens of the task; without token records the
            mean of the documents' fractions; None where neither was written.
        documents: by doc_id.
        sidecar: file of the token records, if there is one.
    """

    arm: str
    task: str
    date: str
    bundle: str | None
    tensors: str | None
    base: str | None
    thinking: str | None
    settings: dict[str, str]
    seed: int | None
    limit: float | None
    versions: dict[str, str]
    tokens_per_second: float | None
    steered_fraction: float | None
    changed_fraction: float | None
    documents: tuple[Document, ...]
    sidecar: Path | None

    @property
    def scores(self) -> list[float]:
        """Exact match per document, in the order of `documents`."""
        return [document.exact_match for document in self.documents]

    def answer(self, doc_id: int) -> Answer:
        """Read one document's answer and token records from the sidecar.

        Raises:
            HybridError: the run wrote no token records, or none for this document.
        """
        if self.sidecar is None:
            raise HybridError(
                f"token records are needed to show an answer; found none for {self.task}, arm {self.arm}; "
                "run model hybrid again with --log_samples"
            )

        def parse(line: dict[str, Any]) -> Answer | None:
            if line["doc_id"] != doc_id:
                return None
            records = tuple(TokenRecord(**record) for record in line["records"])
            return Answer(doc_id, self.task, self.arm, line["prompt"], line["text"], line["finish"], records)

        for answer in _token_lines(self.sidecar, parse):
            if answer is not None:
                return answer
        raise HybridError(f"{self.sidecar.name} has no document {doc_id}; choose one of its doc_id values")


@dataclass(frozen=True)
class Runs:
    """The newest run of every arm on every task, paired: within a task all arms have the same documents."""

    runs: tuple[ArmRun, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.task for run in self.runs))

    def arms(self, task: str) -> dict[str, ArmRun]:
        """Runs on `task` by arm, in the canonical order of arms."""
        return {run.arm: run for run in self.runs if run.task == task}


@dataclass(frozen=True)
class _Sample:
    """What is needed of a line of a samples file. A fraction is None where the task does not score it."""

    filter: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    exact_match: float
    steered_fraction: float | None
    changed_fraction: float | None

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "_Sample":
        if METRIC not in line:
            raise HybridError(
                f"a task must be scored by {METRIC} to be compared; found {', '.join(line['metrics'])}; "
                "choose such a task, run without --predict_only, or move these files away"
            )
        names = ("filter", "doc_id", "doc_hash", "prompt_hash")
        fractions = (line.get("steered_fraction"), line.get("changed_fraction"))
        return cls(*(line[name] for name in names), float(line[METRIC]), *fractions)


@dataclass(frozen=True)
class _Output:
    """One task of one results file, samples not yet read."""

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
            f"results of model hybrid are needed (results_*.json); found none in {folder}; "
            "run lm_eval --model hybrid with --output_path and --log_samples, or name another folder"
        )
    runs = [run for output in newest.values() for run in _runs(output)]
    order = {arm: place for place, arm in enumerate(ARMS)}
    runs.sort(key=lambda run: (run.task, order.get(run.arm, len(order)), run.arm))
    for task in {run.task for run in runs}:
        _check_paired([run for run in runs if run.task == task])
    return Runs(tuple(runs))


def _outputs(folder: Path) -> Iterator[_Output]:
    for path in sorted(folder.rglob("*.json")):
        named = _RESULTS.fullmatch(path.name)
        if not named:
            continue
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            arm = results["config"].get("hybrid_arm")
            tasks = list(results["configs"])
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s is no results file of the harness; ignored", path)
            continue
        if arm is None:
            log.warning("%s is not a run of model hybrid; ignored", path)
            continue
        for task in tasks:
            yield _Output(arm, task, named["date"], path, results)


def _runs(output: _Output) -> Iterator[ArmRun]:
    """Read the samples of one task of one run: a run per filter."""
    samples_path = output.path.with_name(f"samples_{output.task}_{output.date}.jsonl")
    sidecar = output.path.with_name(f"tokens_{output.task}_{output.date}.jsonl")
    if not samples_path.is_file():
        raise HybridError(
            f"samples are needed to pair documents; found no {samples_path.name} beside {output.path}; "
            "run again with --log_samples"
        )
    counts = dict(_token_lines(sidecar, _counts)) if sidecar.is_file() else {}
    by_filter: dict[str, dict[int, _Sample]] = {}
    for sample in _lines(samples_path, _Sample.parse):
        by_filter.setdefault(sample.filter, {})[sample.doc_id] = sample
    config = output.results["config"]
    for name, samples in by_filter.items():
        documents = tuple(
            Document(doc_id, sample.doc_hash, sample.prompt_hash, sample.exact_match, counts.get(doc_id))
            for doc_id, sample in sorted(samples.items())
        )
        yield ArmRun(
            arm=output.arm,
            task=output.task if len(by_filter) == 1 else f"{output.task}:{name}",
            date=output.date,
            bundle=config.get("hybrid_bundle"),
            tensors=config.get("hybrid_tensors"),
            base=config.get("hybrid_base"),
            thinking=config.get("hybrid_thinking"),
            settings=_settings(output.arm, config.get("hybrid_policy") or {}),
            seed=(config.get("hybrid_policy") or {}).get("seed"),
            limit=config.get("limit"),
            versions=_versions(output.results),
            tokens_per_second=(config.get("hybrid_totals") or {}).get("tokens_per_second"),
            steered_fraction=_fraction("steered", documents, samples.values()),
            changed_fraction=_fraction("changed", documents, samples.values()),
            documents=documents,
            sidecar=sidecar if sidecar.is_file() else None,
        )


def _lines(path: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Iterator[Parsed]:
    """What `parse` makes of each line, as a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse(json.loads(line))
            except HybridError as error:
                raise HybridError(f"{path}, line {number}: {error}") from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise HybridError(
                    f"{path} must hold one JSON object a line, as the run writes them; line {number} is none "
                    f"({type(error).__name__}: {error}); run the arm again"
                ) from error


def _token_lines(path: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Iterator[Parsed]:
    def parse_checked(line: dict[str, Any]) -> Parsed:
        if line.get("schema_version") != TOKENS_SCHEMA:
            raise HybridError(
                f"token records must have schema version {TOKENS_SCHEMA}; found {line.get('schema_version')}; "
                "read them with the version of lm-eval-hybrid that wrote them"
            )
        return parse(line)

    return _lines(path, parse_checked)


def _counts(line: dict[str, Any]) -> tuple[int, Counts]:
    """(doc_id, counts of its tokens)."""
    records = line["records"]
    steered = [record for record in records if record["steered"]]
    compared = all(record["base_choice"] is not None for record in steered)
    behaviors = frozenset(record["behavior"] for record in steered if record["behavior"] is not None)
    changed = sum(record["changed"] for record in steered) if compared else None
    return line["doc_id"], Counts(len(records), len(steered), changed, behaviors)


def _settings(arm: str, policy: dict[str, Any]) -> dict[str, str]:
    steers = policy.get("gate") != "never" and policy.get("emit") != "thinking"
    return {name: str(policy[name]) for name in SETTINGS if steers and name in policy and leaves_alone(arm, name)}


def _fraction(kind: str, documents: tuple[Document, ...], samples: Iterable[_Sample]) -> float | None:
    if all(document.counts is not None for document in documents):
        part = [getattr(document.counts, kind) for document in documents]
        whole = sum(document.counts.tokens for document in documents if document.counts is not None)
        return None if None in part or not whole else sum(part) / whole
    column = [getattr(sample, f"{kind}_fraction") for sample in samples]
    return None if None in column else sum(column) / len(column)


def _versions(results: dict[str, Any]) -> dict[str, str]:
    """Versions as the run recorded them, by package; those it did not record are absent."""
    torch = re.match(r"PyTorch version: (\S+)", results.get("pretty_env_info") or "")
    noted = {
        "lm_eval_hybrid": results["config"].get("hybrid_version"),
        "lm_eval": results.get("lm_eval_version"),
        "torch": torch and torch[1],
        "transformers": results.get("transformers_version"),
        "nnsight": results["config"].get("hybrid_nnsight_version"),
    }
    return {name: version for name, version in noted.items() if version}


def _check_paired(runs: list[ArmRun]) -> None:
    for role in ("base", "thinking"):
        arms = {name: run.arm for run in runs if (name := getattr(run, role)) is not None}
        if len(arms) > 1:
            found = " and ".join(f"{name} ({arm})" for name, arm in arms.items())
            raise HybridError(
                f"a comparison of arms needs one {role} model in all of them; found {found} for {runs[0].task}; "
                "run them with the same one, or move one's files away"
            )
    first = runs[0]
    hashes = {document.doc_id: document.doc_hash for document in first.documents}
    prompts = {document.doc_id: document.prompt_hash for document in first.documents}
    for run in runs[1:]:
        pair = f"arms {first.arm} and {run.arm} of {run.task}"
        if {document.doc_id: document.doc_hash for document in run.documents} != hashes:
            found = (
                f"limits {first.limit} and {run.limit}"
                if first.limit != run.limit
                else f"{len(first.documents)} and {len(run.documents)} documents that are not the same"
            )
            raise HybridError(
                f"a paired comparison needs the same documents in every arm; found {found} for {pair}; "
                "run both with the same data and --limit"
            )
        if {document.doc_id: document.prompt_hash for document in run.documents} != prompts:
            log.warning("%s had different prompts: the comparison is of arms and prompts together", pair)
