"""One answer with its steered tokens marked by behavior: by colour, or by brackets where there is none."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.columns import Columns
from rich.console import Group
from rich.text import Text

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.text import printable
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.results.runs import ArmRun, RecordedAnswer, Runs, ScoredDocument

# Backgrounds for black letters: light enough to read on, strong enough to be seen on white and on black.
PALETTE = (
    *("#E69F00", "#56B4E9", "#2DC08D", "#F0E442", "#E08FBF", "#FF8A5C"),
    *("#B39DDB", "#A3D65C", "#5FD3D8", "#D2B48C", "#C0C0C0", "#8FA8FF"),
)
PROMPT_SHOWN = 1000  # characters; few-shot prompts run to pages, and the question is at their end


@dataclass(frozen=True)
class Shown:
    """An answer of the hybrid, whether it is right, and whether base is (None: no run of base)."""

    answer: RecordedAnswer
    right: bool
    base_right: bool | None


def choose(runs: Runs, document: str | None = None) -> Shown | None:
    """The answer that `document` names, else the most telling one; None where there are no token records.

    Most telling: the hybrid right and base wrong, then the most distinct behaviors, then the shortest.

    Args:
        document: a doc_id, with "<task>:" before it where the first task that has it is not meant.

    Raises:
        HybridError: no such document.
    """
    found = [
        (run, held)
        for task in runs.tasks
        if (run := runs.arms(task).get("hybrid"))
        for held in run.documents
        if held.counts is not None
    ]
    if document is not None:
        found = [(run, held) for run, held in found if document in (str(held.doc_id), f"{run.task}:{held.doc_id}")]
        if not found:
            raise HybridError(
                f"a document with token records of arm hybrid is needed; found none named {document!r}; "
                "give a doc_id of the samples file, or <task>:<doc_id>"
            )
        return _shown(runs, *found[0])
    return _shown(runs, *max(found, key=lambda pair: _telling(runs, *pair))) if found else None


def render(shown: Shown, colour: bool) -> Group:
    """The prompt dimmed, the answer with its steered tokens marked, and a legend that counts them."""
    answer = shown.answer
    counts = Counter(name for record in answer.records if (name := _behavior(record)))
    styles = {name: f"#000000 on {PALETTE[place % len(PALETTE)]}" for place, name in enumerate(counts)}
    body = Text()
    body.append("[...] " if len(answer.prompt) > PROMPT_SHOWN else "", style="dim")
    body.append(printable(answer.prompt[-PROMPT_SHOWN:]), style="dim")
    for name, words in _pieces(answer.records):
        if name is None:
            body.append(words)
            continue
        # Space around the words stays unmarked; where there is nothing else, it is spelled out to be seen.
        inner = words.strip()
        start = words.find(inner)
        body.append(words[:start])
        marked = inner or repr(words)[1:-1]
        body.append(marked if colour else f"[{name}: {marked}]", style=styles[name] if colour else "")
        body.append(words[start + len(inner) :])
    return Group(_title(shown), Text(), body, Text(), _legend(counts, styles, len(answer.records), colour))


def _title(shown: Shown) -> Text:
    verdicts = [] if shown.base_right is None else [f"base {'right' if shown.base_right else 'wrong'}"]
    verdicts.append(f"hybrid {'right' if shown.right else 'wrong'}")
    if shown.answer.finish == "length":
        verdicts.append("cut off at the allowed length")
    return Text(f"{shown.answer.task}, document {shown.answer.doc_id}: {', '.join(verdicts)}", style="bold")


def _legend(counts: Counter[str], styles: dict[str, str], tokens: int, colour: bool) -> Group:
    items = []
    for name, count in counts.most_common():
        mark = (f" {name} ", styles[name]) if colour else f"[{name}]"
        items.append(Text.assemble(mark, f" {count}"))
    return Group(Text(f"steered: {counts.total()} of {tokens} tokens"), Columns(items, padding=(0, 3)))


def _pieces(records: tuple[TokenRecord, ...]) -> Iterator[tuple[str | None, str]]:
    """Neighbouring tokens of one behavior joined: (behavior or None where unsteered, text)."""
    for name, run in groupby(records, key=_behavior):
        yield name, printable("".join(record.text for record in run))


def _behavior(record: TokenRecord) -> str | None:
    # A steered token without a behavior had the bias alone.
    return (record.behavior or "bias") if record.steered else None


def _base_right(runs: Runs, run: ArmRun, document: ScoredDocument) -> bool | None:
    base = runs.arms(run.task).get("base")
    if base is None:
        return None
    return next(held.exact_match for held in base.documents if held.doc_id == document.doc_id) == 1


def _telling(runs: Runs, run: ArmRun, document: ScoredDocument) -> tuple[bool, bool, int, int]:
    right = document.exact_match == 1
    gained = right and _base_right(runs, run, document) is False
    return gained, right, len(document.counts.behaviors), -document.counts.tokens


def _shown(runs: Runs, run: ArmRun, document: ScoredDocument) -> Shown:
    return Shown(run.answer(document.doc_id), document.exact_match == 1, _base_right(runs, run, document))
