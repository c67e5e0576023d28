"""Answers with their token records on the way through the harness, what is written of them, and a run's totals.

The harness keeps only an answer's text. Where it saves samples (`--log_samples` with `--output_path`), this module
saves tokens_<task>_<date>.jsonl next to samples_<task>_<date>.jsonl, one line per document. The harness names the
folder after `pretrained=`, which model hybrid does not have; here it is named after bundle and arm.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import sanitize_model_name, simple_parse_args_string

from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA, Generation
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.models.ndif.client import Traffic


class HybridAnswer(str):
    """An answer's text with the generation that produced it.

    Being a `str`, it passes through everything that the harness does with answers; being picklable, it keeps its
    records in the response cache and between processes. Made from a text alone (as the harness makes targets) it has
    no generation.

    Attributes:
        generation: the token records; None if made from a text alone.
        arm, bundle: what generated it.
        thought_open: the prompt ended inside a thought, so that the answer begins in one.
        compared: the base model was run, so that `changed` of its records is known.
        words: the text of the models' choices that differ from the emitted token, by token id.
    """

    generation: Generation | None
    arm: str
    bundle: str
    thought_open: bool
    compared: bool
    words: Mapping[int, str]

    def __new__(
        cls,
        text: object = "",
        generation: Generation | None = None,
        arm: str = "",
        bundle: str = "",
        thought_open: bool = False,
        compared: bool = True,
        words: Mapping[int, str] = MappingProxyType({}),
    ) -> "HybridAnswer":
        self = super().__new__(cls, text)
        self.generation, self.arm, self.bundle = generation, arm, bundle
        self.thought_open, self.compared, self.words = thought_open, compared, dict(words)
        return self


class _LimitedResponses(list[Any]):
    """A request's responses; appending more than `limit` has no effect."""

    limit: int

    def append(self, response: Any) -> None:
        if len(self) < self.limit:
            super().append(response)


def ignore_padding(requests: Sequence[Instance]) -> None:
    """Keep the harness from storing responses to padding.

    With several processes it pads the shorter ranks by listing their last request again, with all its repeats, and then
    appends those responses too: a document would have twice the answers, and another majority, than with one process.
    """
    times = Counter(map(id, requests))
    for request in requests:
        limit = request.repeats or 1
        if times[id(request)] > limit and not isinstance(request.resps, _LimitedResponses):
            request.resps = _LimitedResponses(request.resps)
            request.resps.limit = limit


@dataclass
class Totals:
    """Counts over the answers that a run generated, without those from a response cache.

    Attributes:
        requests: answers counted.
        tokens, steered, changed: generated tokens up to the stop string; those steered; those changed.
        generated: tokens generated in this process's lifetime, without those of an interrupted run.
        compared: the base model was run, so that `changed` is known.
        truncated: answers that reached the length limit.
        behaviors: tokens by the behavior they were steered with.
        seconds: wall-clock time of generation, including prefill.
    """

    requests: int = 0
    tokens: int = 0
    generated: int = 0
    steered: int = 0
    changed: int = 0
    compared: bool = True
    truncated: int = 0
    behaviors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, generation: Generation, resumed: bool = False) -> None:
        """Count a finished answer, but not its time: answers of a batch are generated together."""
        self.requests += 1
        self.tokens += len(generation.records)
        self.generated += 0 if resumed else len(generation.records)
        self.steered += sum(record.steered for record in generation.records)
        self.changed += sum(record.changed for record in generation.records)
        self.compared &= all(record.base_choice is not None for record in generation.records)
        self.truncated += generation.finish == "length"
        self.behaviors.update(generation.categories)

    @classmethod
    def of(cls, ranks: Iterable["Totals"]) -> "Totals":
        """The totals of processes that ran side by side: sums of counts, and the longest time."""
        whole = cls()
        for part in ranks:
            for name in ("requests", "tokens", "generated", "steered", "changed", "truncated"):
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.compared &= part.compared
            whole.behaviors.update(part.behaviors)
            whole.seconds = max(whole.seconds, part.seconds)
        return whole

    def summary(self) -> dict[str, Any]:
        """`hybrid_totals` of the results file. A figure that was not measured is None."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "steered": self.steered,
            "changed": self.changed if self.compared else None,
            "steered_fraction": self.steered / self.tokens if self.tokens else None,
            "changed_fraction": self.changed / self.tokens if self.tokens and self.compared else None,
            "behaviors": dict(self.behaviors.most_common()),
            "truncated": self.truncated,
            "seconds": self.seconds,
            "tokens_per_second": self.generated / self.seconds if self.generated and self.seconds else None,
        }


@dataclass
class RunReport:
    """What a run did, for the results file.

    Attributes:
        totals: counts over its answers.
        sampling: how tokens were chosen (None: greedily). It may differ from --gen_kwargs, which a task can override.
        warnings: what a reader of the results must know.
        traffic: the requests sent to servers, by the model's role.
    """

    totals: Totals = field(default_factory=Totals)
    sampling: set[Sampling | None] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: Sequence["RunReport"]) -> "RunReport":
        """The report of processes that ran side by side."""
        return cls(
            Totals.of(part.totals for part in ranks),
            {sampling for part in ranks for sampling in part.sampling},
            list(dict.fromkeys(warning for part in ranks for warning in part.warnings)),
            {role: Traffic.total(part.traffic[role] for part in ranks) for role in ranks[0].traffic},
        )

    def entries(self) -> dict[str, Any]:
        """The entries of the results file that depend on nothing else."""
        texts = [
            "greedy"
            if each is None
            else f"temperature={each.temperature}, top_k={each.top_k}, top_p={each.top_p}, seed={each.seed}"
            for each in self.sampling
        ]
        return {
            "hybrid_sampling": sorted(texts),
            "hybrid_warnings": self.warnings,
            "hybrid_totals": self.totals.summary(),
        }


_log = logging.getLogger(__name__)


def install_output_hooks() -> None:
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
