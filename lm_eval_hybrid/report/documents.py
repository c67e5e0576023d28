"""Documents and answers, packed for a page that shows them one at a time.

A task has an index, which lists its documents, and of every arm blocks of some documents' answers; the documents
themselves are blocks of an arm without a name. Each is JSON, deflated, in base64: a browser reads the index at once and
a block when one of its documents is opened. Where all blocks together would be too large, the last are left out: first
those of other arms than base, hybrid and thinking, then the last documents'.
"""

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.report.page import writable
from lm_eval_hybrid.results.comparison import TaskComparison
from lm_eval_hybrid.results.runs import ArmRun, Runs, parsed_lines, token_lines

LIMIT = 20_000_000  # bytes of all blocks of a page
BLOCK_DOCUMENTS = 50
BLOCK_CHARACTERS = 1_000_000  # of JSON; more only where one document has more
SEARCHED = 4_000  # characters of a question that the index holds
CORE = ("base", "hybrid", "thinking")


@dataclass(frozen=True)
class Block:
    """Packed JSON under a name that is its own on the page: `<task>`, or `<task>-<arm>-<number>`, by places."""

    name: str
    text: str


@dataclass(frozen=True)
class Pack:
    """A task's documents.

    Attributes:
        index: of everything that the list of documents shows, and of what is in which block.
        blocks: of documents (arm -1) and answers.
        left_out: (arm, documents whose answers are in no block), of arms that have such.
    """

    index: Block
    blocks: tuple[Block, ...]
    left_out: tuple[tuple[str, int], ...]


def pack(runs: Runs, comparison: Sequence[TaskComparison], limit: int = LIMIT) -> list[Pack]:
    """Every task's documents, in the order of `comparison`; a task takes its part of what is left of `limit` bytes.

    Raises:
        HybridError: for a file of samples or token records that cannot be read.
    """
    packs, numbers = [], numbered(comparison)
    for place, task in enumerate(comparison):
        found = _pack(place, task, runs.arms(task.task), numbers, limit // (len(comparison) - place))
        limit -= sum(len(block.text) for block in found.blocks)
        packs.append(found)
    return packs


def numbered(comparison: Sequence[TaskComparison]) -> dict[str, int]:
    """Behaviors of all tasks, the most used first, by number from 0: the same on all of a page."""
    tokens: Counter[str] = Counter()
    for use in (use for task in comparison for use in task.behaviors):
        tokens[use.behavior] += use.tokens
    return {name: i for i, name in enumerate(sorted(tokens, key=lambda name: (-tokens[name], name)))}


@dataclass(frozen=True)
class _Sample:
    """What a line of a samples file says that an answer's record does not."""

    question: str
    target: str
    prompt: str
    text: str
    read: str | None

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "_Sample":
        doc, prompt = line["doc"], _first(line["arguments"])
        fields = doc if isinstance(doc, dict) else {"question": doc}
        question = question_of(fields)
        question = prompt if question is None else question
        text, read = _first(line["resps"]), _first(line["filtered_resps"])
        words = (question, _first(line["target"]), prompt, text)
        # What the task read out of the answer, where that is not the answer.
        return cls(*map(writable, words), None if read.strip() == text.strip() else writable(read))


def _first(value: Any) -> str:
    """The first text in lists of lists; the harness logs arguments as mappings."""
    while isinstance(value, (list, tuple, dict)) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) else "" if value in ([], {}, None) else str(value)


def _pack(place: int, task: TaskComparison, arms: dict[str, ArmRun], numbers: dict[str, int], limit: int) -> Pack:
    names = list(arms)
    asked = list(_samples(next(iter(arms.values()))))
    sources: dict[int, Callable[[], Iterable[Any]]] = {
        -1: lambda: ([s.question, s.target, s.prompt] for s in asked),
        **{i: lambda run=run: _answers(run, numbers) for i, run in enumerate(arms.values())},
    }
    core = [-1, *(i for i, name in enumerate(names) if name in CORE)]
    spans: dict[int, list[tuple[int, int]]] = {i: [] for i in sources}
    blocks: list[Block] = []
    for arm, start, end, text in _in_order(sources, core):
        limit -= len(text)
        if limit < 0:
            break
        blocks.append(Block(f"{place}-{arm}-{len(spans[arm])}", text))
        spans[arm].append((start, end))
    index = {
        "task": writable(task.task),
        "arms": [writable(name) for name in names],
        "core": core[1:],
        "behaviors": [writable(name) for name in numbers],
        "ids": [document.doc_id for document in next(iter(arms.values())).documents],
        "questions": [sample.question[:SEARCHED] for sample in asked],
        "outcomes": [_outcomes(run) for run in arms.values()],
        "used": _used(arms.get("hybrid"), numbers),
        "blocks": [spans[i] for i in sources],
    }
    missing = {i: task.documents - sum(end - start for start, end in spans[i]) for i in range(len(names))}
    left_out = tuple((names[i], count) for i, count in missing.items() if count)
    return Pack(Block(f"{place}", packed(_json(index))), tuple(blocks), left_out)


def _in_order(sources: dict[int, Callable[[], Iterable[Any]]], core: list[int]) -> Iterator[tuple[int, int, int, str]]:
    """(arm, first document, the one after the last, packed) of all blocks, the more important first."""
    first = zip_longest(*(_blocks(arm, sources[arm]()) for arm in core))
    others = (_blocks(arm, source()) for arm, source in sources.items() if arm not in core)
    yield from (block for block in chain.from_iterable(chain(first, others)) if block is not None)


def _blocks(arm: int, documents: Iterable[Any]) -> Iterator[tuple[int, int, int, str]]:
    start, held, size = 0, [], 0
    for document in documents:
        text = _json(document)
        if held and (len(held) == BLOCK_DOCUMENTS or size + len(text) > BLOCK_CHARACTERS):
            yield arm, start, start + len(held), packed(f"[{','.join(held)}]")
            start, held, size = start + len(held), [], 0
        held.append(text)
        size += len(text)
    yield arm, start, start + len(held), packed(f"[{','.join(held)}]")


def packed(text: str) -> str:
    """Deflated (zlib's format), in base64."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _samples(run: ArmRun) -> Iterator[_Sample]:
    """Of each document, in the order of `documents`."""
    task = run.samples.name.removeprefix("samples_").removesuffix(f"_{run.date}.jsonl")
    name = run.task.removeprefix(f"{task}:") if run.task != task else None
    found = parsed_lines(
        run.samples, lambda line: (line["doc_id"], _Sample.parse(line)) if name in (None, line["filter"]) else None
    )
    samples = dict(sample for sample in found if sample is not None)
    return (samples[document.doc_id] for document in run.documents)


def _answers(run: ArmRun, numbers: dict[str, int]) -> Iterator[list[Any]]:
    """[text, or of the hybrid its pieces; what the task read out of it], in the order of documents."""
    told: dict[int, list[Any]] = {}
    if run.arm == "hybrid" and run.sidecar is not None:
        told = dict(token_lines(run.sidecar, lambda line: (line["doc_id"], _pieces(line, numbers))))
    for document, sample in zip(run.documents, _samples(run), strict=True):
        yield [told.get(document.doc_id, sample.text), sample.read]


def _pieces(line: dict[str, Any], numbers: dict[str, int]) -> list[Any]:
    """Plain text and, as lists, steered tokens, in the order of the answer."""
    pieces: list[Any] = []
    plain: list[str] = []
    for record in line["records"]:
        if not record["steered"]:
            plain.append(record["text"])
            continue
        # Only of these a record is made: there are few, and it takes as long as reading the line.
        pieces += [writable("".join(plain)), _token(TokenRecord(**record), line["words"], numbers)]
        plain.clear()
    return [piece for piece in [*pieces, writable("".join(plain))] if piece != ""]


def _token(record: TokenRecord, words: dict[str, str], numbers: dict[str, int]) -> list[Any]:
    """Of a steered token: text, behavior, coefficient, window, whether it was changed, the probability that the
    thinking model gives it, and of both models what they would have said and its probability.
    """

    def said(choice: int | None) -> str | None:
        if choice is None:
            return None
        return writable(record.text if choice == record.token else words.get(str(choice), f"token {choice}"))

    return [
        writable(record.text),
        numbers[record.behavior or "bias"],
        None if record.coefficient is None else round(record.coefficient, 3),
        record.window,
        int(record.changed),
        _probability(record.thinking_logprob),
        said(record.base_choice),
        _probability(record.base_logprob),
        said(record.thinking_choice),
        _probability(record.thinking_choice_logprob),
    ]


def _probability(logprob: float | None) -> float | None:
    return None if logprob is None else round(math.exp(min(logprob, 0.0)), 6)


def _outcomes(run: ArmRun) -> dict[str, list[int | None]]:
    """Columns, a value a document: right; tokens, steered, cut by the limit, ended within a thought, where known."""
    counts = [document.counts for document in run.documents]
    return {
        "right": [int(document.exact_match) for document in run.documents],
        "tokens": [None if c is None else c.tokens for c in counts],
        "steered": [None if c is None else c.steered for c in counts],
        "truncated": [None if c is None else int(c.finish == "length") for c in counts],
        "unfinished": [None if d.unfinished is None else int(d.unfinished) for d in run.documents],
    }


def _used(hybrid: ArmRun | None, numbers: dict[str, int]) -> list[list[int]]:
    """Of each document, the behaviors that the hybrid was steered with."""
    if hybrid is None:
        return []
    used = []
    for counts in (document.counts for document in hybrid.documents):
        names = [] if counts is None else [name for name, tokens in counts.behaviors.items() if tokens]
        if counts is not None and counts.steered > sum(counts.behaviors.values()):
            names.append("bias")
        used.append(sorted(numbers[name] for name in names))
    return used
