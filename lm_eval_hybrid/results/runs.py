"""Runs that can be compared document by document: the newest of every arm on every task, as `outputs` reads them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA, TokenRecord

log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")
METRIC = "exact_match"
# Of the policy: what a bundle says, unless the user or the arm does.
SETTINGS = ("gate", "select", "coefficients", "windows")
WITHOUT = "without "
"""Begins the name of an arm that is the hybrid with one behavior, whose key follows, left out."""


@dataclass(frozen=True)
class Counts:
    """Of one answer.

    Attributes:
        tokens, steered: generated tokens, and those at which the gate opened.
        changed: those that steering changed; None where the base model was not run.
        behaviors: tokens by the behavior they were steered with.
        finish: `eos`, `stop` or `length`.
        text_sha256: of its text.
    """

    tokens: int
    steered: int
    changed: int | None
    behaviors: Mapping[str, int]
    finish: str
    text_sha256: str


@dataclass(frozen=True)
class Document:
    """How one arm did on one document.

    Attributes:
        doc_hash, prompt_hash: the harness's, of the document and of the prompt made of it.
        exact_match: 1 where it is right, else 0.
        unfinished: the answer ends within a thought; None where the task does not score that.
        counts: None where the run wrote no token records.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    exact_match: float
    unfinished: bool | None
    counts: Counts | None


@dataclass(frozen=True)
class Answer:
    """One generated answer with a record per token, as the run wrote it.

    Attributes:
        words: what the models' choices read as, by id, where they are not the token that was taken.
    """

    doc_id: int
    task: str
    arm: str
    prompt: str
    text: str
    finish: str
    words: Mapping[int, str]
    records: tuple[TokenRecord, ...]


@dataclass(frozen=True)
class ArmRun:
    """One arm on one task.

    Attributes:
        arm: as the run calls it; or `without KEY`, see WITHOUT.
        task: the harness's name; followed by ":<filter>" where the task scores several filters.
        date: of the results file, as in its name.
        tensors: sha256 of the bundle's tensors; None where not recorded, or not those of one bundle as it is.
        base, thinking: what identifies the models; None where not recorded, or not run.
        fingerprint: sha256 of everything that decides its tokens; None where not recorded.
        settings: how it steers, where that is the bundle's or the user's choice and not the arm's; empty where it
            does not steer.
        tokens_per_second: generated tokens over the generation time of the whole run, all its tasks together;
            None where it generated none.
        steered_fraction, changed_fraction: of all generated tokens of the task; without token records the
            mean of the documents' fractions; None where neither was written.
        documents: by doc_id.
        samples: the harness's file of them.
        sidecar: file of the token records, if there is one.
    """

    arm: str
    task: str
    date: str
    bundle: str | None
    tensors: str | None
    base: str | None
    thinking: str | None
    fingerprint: str | None
    settings: dict[str, str]
    seed: int | None
    limit: float | None
    versions: dict[str, str]
    tokens_per_second: float | None
    steered_fraction: float | None
    changed_fraction: float | None
    documents: tuple[Document, ...]
    samples: Path
    sidecar: Path | None

    @property
    def scores(self) -> list[float]:
        """Exact match per document, in the order of `documents`."""
        return [document.exact_match for document in self.documents]

    def answers(self) -> Iterator[Answer]:
        """All documents' answers and token records, in the order of the file; none where there are no records."""
        if self.sidecar is not None:
            yield from token_lines(self.sidecar, self._answer)

    def answer(self, doc_id: int) -> Answer:
        """One document's answer and token records.

        Raises:
            HybridError: the run wrote no token records, or none for this document.
        """
        if self.sidecar is None:
            raise HybridError(
                f"token records are needed to show an answer; found none for {self.task}, arm {self.arm}; "
                "run model hybrid again with --log_samples"
            )
        held = token_lines(self.sidecar, lambda line: self._answer(line) if line["doc_id"] == doc_id else None)
        for answer in held:
            if answer is not None:
                return answer
        raise HybridError(f"{self.sidecar.name} has no document {doc_id}; choose one of its doc_id values")

    def _answer(self, line: dict[str, Any]) -> Answer:
        words = {int(token): str(text) for token, text in line["words"].items()}
        records = tuple(TokenRecord(**record) for record in line["records"])
        return Answer(line["doc_id"], self.task, self.arm, line["prompt"], line["text"], line["finish"], words, records)


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


def check_paired(runs: list[ArmRun]) -> None:
    """Check that runs on one task are of the same models and documents.

    Raises:
        HybridError: they are not.
    """
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
        if run.versions != first.versions:
            names = sorted(run.versions.keys() | first.versions.keys())
            found = [
                f"{name} {first.versions.get(name, 'not recorded')} and {run.versions.get(name, 'not recorded')}"
                for name in names
                if run.versions.get(name) != first.versions.get(name)
            ]
            log.warning("%s were run with %s: a difference may be theirs", pair, ", ".join(found))


def parsed_lines(path: Path, parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
    """Yield `parse(line)` for each line of a samples file, as a JSON value.

    Raises:
        HybridError: `path:line` is not JSON, or `parse` failed on it.
    """
    for number, line in jsonl.rows(path):
        try:
            result = parse(line)
        except HybridError as error:
            raise HybridError(f"{path}:{number}: {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise HybridError(
                f"{path}:{number}: not a line that a run writes ({type(error).__name__}: {error}); run the arm again"
            ) from error
        yield result


def token_lines(path: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Iterator[Parsed]:
    """As `parsed_lines`, for a tokens file, whose lines carry a schema version."""

    def parse_checked(line: dict[str, Any]) -> Parsed:
        if (version := line.get("schema_version")) != TOKENS_SCHEMA:
            raise HybridError(
                f"token records have schema version {version}; must be {TOKENS_SCHEMA}; read them with the version of "
                "lm-eval-hybrid that wrote them"
            )
        return parse(line)

    return parsed_lines(path, parse_checked)
