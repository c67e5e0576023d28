"""One arm's run on one task, and runs that can be compared document by document."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA, TokenRecord

log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")
METRIC = "exact_match"
SETTINGS = ("gate", "select", "coefficients", "windows")
"""Fields of the policy that the bundle sets unless the user or the arm does."""
WITHOUT = "without "
"""Prefix of an arm that is the hybrid with one behavior left out; the behavior's key follows."""


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of one answer.

    Attributes:
        tokens, steered: generated tokens, and those at which the gate opened.
        changed: tokens that steering changed; None if the base model was not run.
        behaviors: tokens by the behavior that steered them.
        finish: `eos`, `stop` or `length`.
        text_sha256: of the answer's text.
    """

    tokens: int
    steered: int
    changed: int | None
    behaviors: Mapping[str, int]
    finish: str
    text_sha256: str


@dataclass(frozen=True)
class ScoredDocument:
    """How one arm did on one document.

    Attributes:
        doc_hash, prompt_hash: the harness's, of the document and of its prompt.
        exact_match: 1 if the answer is right, else 0.
        unfinished: the answer ends within a thought; None if the task does not score that.
        steered_fraction, changed_fraction: of its tokens; None if the task does not score them.
        counts: None if the run wrote no token records.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    exact_match: float
    unfinished: bool | None
    steered_fraction: float | None
    changed_fraction: float | None
    counts: TokenCounts | None


@dataclass(frozen=True)
class RecordedAnswer:
    """One generated answer with a record per token, as the run wrote it.

    Attributes:
        words: text of the tokens that a model chose but that were not taken, by token id.
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
        arm: as the run calls it, or `without KEY`, see WITHOUT.
        task: the harness's name, followed by ":<filter>" if the task scores several filters.
        date: of the results file, as in its name.
        tensors: sha256 of the bundle's tensors; None if not recorded, or if not those of one unchanged bundle.
        base, thinking: identify the models; None if not recorded or not run.
        fingerprint: sha256 of everything that decides its tokens; None if not recorded.
        settings: fields of the policy that the bundle or the user chose, not the arm; empty if the arm does not steer.
        tokens_per_second: generated tokens over generation time of the whole run, all tasks together; None if it
            generated none.
        steered_fraction, changed_fraction: of all generated tokens of the task; without token records, the mean of
            the documents' fractions; None if neither was written.
        documents: by doc_id.
        samples: the harness's samples file.
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
    documents: tuple[ScoredDocument, ...]
    samples: Path
    sidecar: Path | None

    @property
    def scores(self) -> list[float]:
        """Exact match per document, in the order of `documents`."""
        return [document.exact_match for document in self.documents]

    def answers(self) -> Iterator[RecordedAnswer]:
        """Yield each document's answer with its token records, in file order; nothing without token records."""
        if self.sidecar is not None:
            yield from token_lines(self.sidecar, self._answer)

    def answer(self, doc_id: int) -> RecordedAnswer:
        """One document's answer with its token records.

        Raises:
            HybridError: the run wrote no token records, or none for this document.
        """
        if self.sidecar is None:
            raise HybridError(
                f"{self.task}, arm {self.arm} has no token records; showing an answer needs them; run model hybrid "
                "again with --log_samples"
            )
        answers = token_lines(self.sidecar, lambda line: self._answer(line) if line["doc_id"] == doc_id else None)
        for answer in answers:
            if answer is not None:
                return answer
        raise HybridError(f"{self.sidecar.name} has no document {doc_id}; choose one of its doc_id values")

    def _answer(self, line: dict[str, Any]) -> RecordedAnswer:
        words = {int(token): str(text) for token, text in line["words"].items()}
        records = tuple(TokenRecord(**record) for record in line["records"])
        return RecordedAnswer(
            line["doc_id"], self.task, self.arm, line["prompt"], line["text"], line["finish"], words, records
        )


@dataclass(frozen=True)
class Runs:
    """The newest run of every arm on every task; within a task all arms have the same documents."""

    runs: tuple[ArmRun, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.task for run in self.runs))

    def arms(self, task: str) -> dict[str, ArmRun]:
        """Runs on `task` by arm, in the canonical order of arms."""
        return {run.arm: run for run in self.runs if run.task == task}


def check_paired(runs: Sequence[ArmRun]) -> None:
    """Check that runs on one task used the same models and documents; warn if prompts or versions differ.

    Raises:
        HybridError: they did not.
    """
    for role in ("base", "thinking"):
        arms = {name: run.arm for run in runs if (name := getattr(run, role)) is not None}
        if len(arms) > 1:
            names = " and ".join(f"{name} ({arm})" for name, arm in arms.items())
            raise HybridError(
                f"{runs[0].task} was run with {role} models {names}; a comparison needs the same one in every arm; "
                "run the arms again with one, or move one's files away"
            )
    first = runs[0]
    hashes = {document.doc_id: document.doc_hash for document in first.documents}
    prompts = {document.doc_id: document.prompt_hash for document in first.documents}
    for run in runs[1:]:
        pair = f"arms {first.arm} and {run.arm} of {run.task}"
        if {document.doc_id: document.doc_hash for document in run.documents} != hashes:
            difference = (
                f"limits {first.limit} and {run.limit}"
                if first.limit != run.limit
                else f"{len(first.documents)} and {len(run.documents)} documents that are not the same"
            )
            raise HybridError(
                f"{pair} have {difference}; a paired comparison needs the same documents in every arm; run both with "
                "the same data and --limit"
            )
        if {document.doc_id: document.prompt_hash for document in run.documents} != prompts:
            log.warning("%s had different prompts: the comparison is of arms and prompts together", pair)
        if run.versions != first.versions:
            versions = [
                f"{name} {first.versions.get(name, 'not recorded')} and {run.versions.get(name, 'not recorded')}"
                for name in sorted(run.versions.keys() | first.versions.keys())
                if run.versions.get(name) != first.versions.get(name)
            ]
            log.warning("%s were run with %s: a difference may be theirs", pair, ", ".join(versions))


def parsed_lines(path: Path, parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
    """Yield `parse(line)` for each line of a samples file, a JSON value.

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
