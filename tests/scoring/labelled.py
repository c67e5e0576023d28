"""The labelled answers, and the precision and recall of a scorer on them: `python -m tests.scoring.labelled`.

Each line of labelled_answers.jsonl is one answer, written for this repository in the style of a model, with a careful
reader's verdict. The command compares the package's scorer with math_verify alone, which gets the same whole text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.decoding.records import Finish
from lm_eval_hybrid.results.statistics import accuracy
from lm_eval_hybrid.scoring.metrics import is_right, truth_of

FILE = Path(__file__).with_name("labelled_answers.jsonl")


@dataclass(frozen=True)
class Labelled:
    """One answer and the verdict of a careful reader.

    Attributes:
        kind: what the answer tests, such as `fraction` or `run-on`.
        truth: as a data set has it: an expression (MATH) or a solution that ends in `#### n` (GSM8K).
        answer: what the model wrote.
        note: where a careful reader would hesitate.
        finish, opened_by_prompt: see `metrics.is_right`.
        held_out: whether the scorer was written without this answer.
    """

    id: str
    kind: str
    question: str | None
    truth: str
    answer: str
    right: bool
    note: str = ""
    finish: Finish | None = None
    opened_by_prompt: bool = False
    held_out: bool = False


def load() -> list[Labelled]:
    """All labelled answers, in the order of the file."""
    with FILE.open(encoding="utf-8") as lines:
        return [Labelled(**json.loads(line)) for line in lines]


def ours(item: Labelled) -> bool:
    """The verdict of this package."""
    truth = truth_of({"answer": item.truth})
    return is_right(item.answer, truth, item.question, item.finish, item.opened_by_prompt)


def math_verify_alone(item: Labelled) -> bool:
    """The verdict of math_verify, which finds the answer in the text by itself."""
    from math_verify import parse, verify

    return verify(parse(f"\\boxed{{{truth_of({'answer': item.truth})}}}"), parse(item.answer))


def main() -> None:
    """Print a Markdown table of precision and recall, each with Wilson's 95% interval."""
    items = load()
    held_out = [item for item in items if item.held_out]
    print("| answers | of them right | scorer | precision | recall | wrong verdicts |\n|---|---|---|---|---|---|")
    for name, part in (("all", items), ("held out", held_out)):
        start = f"| {name}: {len(part)} | {sum(item.right for item in part)} "
        print(f"{start}| this package | {_row(ours, part)} |")
        print(f"{start}| math-verify alone | {_row(math_verify_alone, part)} |")


def _row(scorer: Callable[[Labelled], bool], items: list[Labelled]) -> str:
    verdicts = [(scorer(item), item.right) for item in items]
    precision = accuracy([int(right) for verdict, right in verdicts if verdict])
    recall = accuracy([int(verdict) for verdict, right in verdicts if right])
    cells = [f"{each.value:.1%} [{each.low:.1%}, {each.high:.1%}]" for each in (precision, recall)]
    return f"{cells[0]} | {cells[1]} | {sum(verdict != right for verdict, right in verdicts)}"


if __name__ == "__main__":
    main()
