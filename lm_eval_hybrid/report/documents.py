"""Documents and answers, packed for a page that shows them one at a time.

Each task has an index with everything that the list of documents shows, and blocks of answers of each arm; the
documents themselves are the blocks of arm -1. Index and blocks are JSON, deflated, in base64: the browser reads the
index at once, and a block when one of its documents is opened. Where all blocks would make the page too large, the last
ones are left out: first those of arms other than base, hybrid and thinking, then those of the last documents.
"""

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from lm_eval_hybrid.common.errors import writable
from lm_eval_hybrid.common.jsonl import question_of
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.results.comparison import TaskComparison
from lm_eval_hybrid.results.runs import ArmRun, Runs, parsed_lines, token_lines

LIMIT = 20_000_000  # bytes of all blocks of a page
BLOCK_DOCUMENTS = 50
BLOCK_CHARACTERS = 1_000_000  # of JSON; a single larger document has a block of its own
SEARCHED = 4_000  # characters of a question that the index holds
CORE = ("base", "hybrid", "thinking")


@dataclass(frozen=True)
class Block:
    """Packed JSON, and its name on the page: `<task>` for an index, `<task>-<arm>-<number>` for a block, by index."""

    name: str
    text: str


@dataclass(frozen=True)
class DocumentPack:
    """The documents and answers of one task.

    Attributes:
        left_out: (arm, number of documents whose answers are in no block), for arms with such documents.
    """

    index: Block
    blocks: tuple[Block, ...]
    left_out: tuple[tuple[str, int], ...]


def pack(runs: Runs, comparison: Sequence[TaskComparison], limit: int = LIMIT) -> list[DocumentPack]:
    """Pack every task of `comparison`; each may take an equal part of the bytes that those before it left of `limit`.

    Raises:
        HybridError: a file of samples or token records cannot be read.
    """
    packs, numbers = [], numbered(comparison)
    for place, task in enumerate(comparison):
        made = _pack(place, task, runs.arms(task.task), numbers, limit // (len(comparison) - place))
        limit -= sum(len(block.text) for block in made.blocks)
        packs.append(made)
    return packs


def numbered(comparison: Sequence[TaskComparison]) -> dict[str, int]:
    """The number of each behavior on the whole page, from 0, the most used first."""
    tokens: Counter[str] = Counter()
    for use in (use for task in comparison for use in task.behaviors):
        tokens[use.behavior] += use.tokens
    return {name: i for i, name in enumerate(sorted(tokens, key=lambda name: (-tokens[name], name)))}


@dataclass(frozen=True)
class _Sample:
    """A line of a samples file; `read` is the answer that the task read out of the text, None where it is the text."""

    question: str
    target: str
    prompt: str
    text: str
    read: str | None

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "_Sample":
        doc, prompt = line["doc"], _first(line["arguments"])
        question = question_of(doc if isinstance(doc, dict) else {"question": doc})
        text, read = _first(line["resps"]), _first(line["filtered_resps"])
        return cls(
            writable(prompt if question is None else question),
            writable(_first(line["target"])),
            writable(prompt),
            writable(text),
            None if read.strip() == text.strip() else writable(read),
        )


def _first(value: Any) -> str:
    """The first text in nested lists or, as the harness logs arguments, mappings."""
    while isinstance(value, (list, tuple, dict)) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) else "" if value in ([], {}, None) else str(value)


def _pack(
    place: int, task: TaskComparison, arms: dict[str, ArmRun], numbers: dict[str, int], limit: int
) -> DocumentPack:
    names = list(arms)
    samples = list(_samples(next(iter(arms.values()))))
    questions = ([sample.question, sample.target, sample.prompt] for sample in samples)
    contents: dict[int, Iterable[Any]] = {-1: questions}
    contents |= {i: _answers(run, numbers) for i, run in enumerate(arms.values())}
    core = [i for i, name in enumerate(names) if name in CORE]
    spans: dict[int, list[tuple[int, int]]] = {i: [] for i in contents}
    blocks: list[Block] = []
    for arm, start, end, text in _in_order(contents, [-1, *core]):
        limit -= len(text)
        if limit < 0:
            break
        blocks.append(Block(f"{place}-{arm}-{len(spans[arm])}", text))
        spans[arm].append((start, end))
    index = {
        "task": writable(task.task),
        "arms": [writable(name) for name in names],
        "core": core,
        "behaviors": [writable(name) for name in numbers],
        "ids": [document.doc_id for document in next(iter(arms.values())).documents],
        "questions": [sample.question[:SEARCHED] for sample in samples],
        "outcomes": [_outcomes(run) for run in arms.values()],
        "used": _used(arms.get("hybrid"), numbers),
        "blocks": [spans[i] for i in contents],
    }
    missing = {i: task.documents - sum(end - start for start, end in spans[i]) for i in range(len(names))}
    left_out = tuple((names[i], count) for i, count in missing.items() if count)
    return DocumentPack(Block(f"{place}", packed(_json(index))), tuple(blocks), left_out)


def _in_order(contents: dict[int, Iterable[Any]], core: list[int]) -> Iterator[tuple[int, int, int, str]]:
    """(arm, first document, document after the last, packed) of all blocks, the most important first."""
    first = zip_longest(*(_blocks(arm, contents[arm]) for arm in core))
    others = (_blocks(arm, values) for arm, values in contents.items() if arm not in core)
    yield from (block for block in chain.from_iterable(chain(first, others)) if block is not None)


def _blocks(arm: int, values: Iterable[Any]) -> Iterator[tuple[int, int, int, str]]:
    start, size = 0, 0
    held: list[str] = []
    for value in values:
        text = _json(value)
        if held and (len(held) == BLOCK_DOCUMENTS or size + len(text) > BLOCK_CHARACTERS):
            yield arm, start, start + len(held), packed(f"[{','.join(held)}]")
            start, held, size = start + len(held), [], 0
        held.append(text)
        size += len(text)
    yield arm, start, start + len(held), packed(f"[{','.join(held)}]")


def packed(text: str) -> str:
    """The text in zlib's format, in base64."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _samples(run: ArmRun) -> Iterator[_Sample]:
    """The samples of the run's filter, in the order of `documents`."""
    task = run.samples.name.removeprefix("samples_").removesuffix(f"_{run.date}.jsonl")
    name = run.task.removeprefix(f"{task}:") if run.task != task else None
    parsed = parsed_lines(
        run.samples, lambda line: (line["doc_id"], _Sample.parse(line)) if name in (None, line["filter"]) else None
    )
    samples = dict(sample for sample in parsed if sample is not None)
    return (samples[document.doc_id] for document in run.documents)


def _answers(run: ArmRun, numbers: dict[str, int]) -> Iterator[list[Any]]:
    """For each document, [the text, or of the hybrid its pieces; the answer that the task read in it]."""
    pieces: dict[int, list[Any]] = {}
    if run.arm == "hybrid" and run.sidecar is not None:
        pieces = dict(token_lines(run.sidecar, lambda line: (line["doc_id"], _pieces(line, numbers))))
    for document, sample in zip(run.documents, _samples(run), strict=True):
        yield [pieces.get(document.doc_id, sample.text), sample.read]


def _pieces(line: dict[str, Any], numbers: dict[str, int]) -> list[Any]:
    """The answer as unsteered texts and, as lists, steered tokens."""
    pieces: list[Any] = []
    plain: list[str] = []
    for record in line["records"]:
        if not record["steered"]:
            plain.append(record["text"])
            continue
        # Only steered tokens become a TokenRecord: making one takes as long as reading its line.
        pieces += [writable("".join(plain)), _token(TokenRecord(**record), line["words"], numbers)]
        plain.clear()
    return [piece for piece in [*pieces, writable("".join(plain))] if piece != ""]


def _token(record: TokenRecord, words: dict[str, str], numbers: dict[str, int]) -> list[Any]:
    """A steered token: its text, behavior, coefficient, window, whether steering changed it, its probability under the
    thinking model, and the base's and the thinking model's own choice, each with its probability.
    """

    def name(choice: int | None) -> str | None:
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
        name(record.base_choice),
        _probability(record.base_logprob),
        name(record.thinking_choice),
        _probability(record.thinking_choice_logprob),
    ]


def _probability(logprob: float | None) -> float | None:
    return None if logprob is None else round(math.exp(min(logprob, 0.0)), 6)


def _outcomes(run: ArmRun) -> dict[str, list[int | None]]:
    """Columns with a value for each document, None where it is unknown."""
    counts = [document.counts for document in run.documents]
    return {
        "right": [int(document.exact_match) for document in run.documents],
        "tokens": [None if c is None else c.tokens for c in counts],
        "steered": [None if c is None else c.steered for c in counts],
        "truncated": [None if c is None else int(c.finish == "length") for c in counts],
        "unfinished": [None if d.unfinished is None else int(d.unfinished) for d in run.documents],
    }


def _used(hybrid: ArmRun | None, numbers: dict[str, int]) -> list[list[int]]:
    """For each document, the behaviors that steered the hybrid."""
    if hybrid is None:
        return []
    used = []
    for counts in (document.counts for document in hybrid.documents):
        names = [] if counts is None else [name for name, tokens in counts.behaviors.items() if tokens]
        if counts is not None and counts.steered > sum(counts.behaviors.values()):
            names.append("bias")
        used.append(sorted(numbers[name] for name in names))
    return used
