"""One answer in the terminal with its steered tokens marked by behavior: by colour, or else by brackets."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.columns import Columns
from rich.console import Group
from rich.text import Text

from lm_eval_hybrid.common.errors import HybridError, printable
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.results.runs import ArmRun, RecordedAnswer, Runs, ScoredDocument, TokenCounts

# Backgrounds for black letters: light enough to read, strong enough to see on white and on black.
PALETTE = (
    *("#E69F00", "#56B4E9", "#2DC08D", "#F0E442", "#E08FBF", "#FF8A5C"),
    *("#B39DDB", "#A3D65C", "#5FD3D8", "#D2B48C", "#C0C0C0", "#8FA8FF"),
)
PROMPT_SHOWN = 1000  # last characters; few-shot prompts are pages long, and the question is at their end


@dataclass(frozen=True)
class ShownAnswer:
    """An answer of the hybrid, whether it is right, and whether the base's is (None: the base was not run)."""

    answer: RecordedAnswer
    right: bool
    base_right: bool | None


def choose(runs: Runs, document: str | None = None) -> ShownAnswer | None:
    """The answer to `document`, else the most instructive one; None where no run has token records.

    Most instructive: the hybrid right and the base wrong, then the most behaviors, then the shortest.

    Args:
        document: a doc_id, of the first task that has it, or "<task>:<doc_id>".

    Raises:
        HybridError: no answer to that document has token records.
    """
    candidates = [
        (run, each, each.counts)
        for task in runs.tasks
        if (run := runs.arms(task).get("hybrid"))
        for each in run.documents
        if each.counts is not None
    ]
    if document is not None:
        for run, each, _ in candidates:
            if document in (str(each.doc_id), f"{run.task}:{each.doc_id}"):
                return _shown(runs, run, each)
        raise HybridError(
            f"arm hybrid has no document {document!r} with token records; "
            "give a doc_id of the samples file, or <task>:<doc_id>"
        )
    if not candidates:
        return None
    run, each, _ = max(candidates, key=lambda candidate: _rank(runs, *candidate))
    return _shown(runs, run, each)


def _rank(runs: Runs, run: ArmRun, document: ScoredDocument, counts: TokenCounts) -> tuple[bool, bool, int, int]:
    right = document.exact_match == 1
    gained = right and _base_right(runs, run, document) is False
    return gained, right, len(counts.behaviors), -counts.tokens


def _shown(runs: Runs, run: ArmRun, document: ScoredDocument) -> ShownAnswer:
    return ShownAnswer(run.answer(document.doc_id), document.exact_match == 1, _base_right(runs, run, document))


def _base_right(runs: Runs, run: ArmRun, document: ScoredDocument) -> bool | None:
    base = runs.arms(run.task).get("base")
    if base is None:
        return None
    return next(each.exact_match for each in base.documents if each.doc_id == document.doc_id) == 1


def render(shown: ShownAnswer, colour: bool) -> Group:
    """The prompt dimmed, the answer with its steered tokens marked, and a legend with their numbers."""
    answer = shown.answer
    counts = Counter(name for record in answer.records if (name := _behavior(record)))
    styles = {name: f"#000000 on {PALETTE[i % len(PALETTE)]}" for i, name in enumerate(counts)}
    body = Text()
    body.append("[...] " if len(answer.prompt) > PROMPT_SHOWN else "", style="dim")
    body.append(printable(answer.prompt[-PROMPT_SHOWN:]), style="dim")
    for name, words in _pieces(answer.records):
        if name is None:
            body.append(words)
            continue
        # Space around the words stays unmarked; a piece of nothing but space is spelled out, so that it can be seen.
        inner = words.strip()
        start = words.find(inner)
        body.append(words[:start])
        marked = inner or repr(words)[1:-1]
        body.append(marked if colour else f"[{name}: {marked}]", style=styles[name] if colour else "")
        body.append(words[start + len(inner) :])
    return Group(_title(shown), Text(), body, Text(), _legend(counts, styles, len(answer.records), colour))


def _title(shown: ShownAnswer) -> Text:
    verdicts = [] if shown.base_right is None else [f"base {'right' if shown.base_right else 'wrong'}"]
    verdicts.append(f"hybrid {'right' if shown.right else 'wrong'}")
    if shown.answer.finish == "length":
        verdicts.append("cut at the token limit")
    return Text(f"{shown.answer.task}, document {shown.answer.doc_id}: {', '.join(verdicts)}", style="bold")


def _legend(counts: Counter[str], styles: dict[str, str], tokens: int, colour: bool) -> Group:
    items = []
    for name, count in counts.most_common():
        mark = (f" {name} ", styles[name]) if colour else f"[{name}]"
        items.append(Text.assemble(mark, f" {count}"))
    return Group(Text(f"steered: {counts.total()} of {tokens} tokens"), Columns(items, padding=(0, 3)))


def _pieces(records: tuple[TokenRecord, ...]) -> Iterator[tuple[str | None, str]]:
    """Runs of tokens steered with one behavior: (its key, or None for unsteered tokens; their text)."""
    for name, run in groupby(records, key=_behavior):
        yield name, printable("".join(record.text for record in run))


def _behavior(record: TokenRecord) -> str | None:
    return (record.behavior or "bias") if record.steered else None  # without a behavior, the bias alone
