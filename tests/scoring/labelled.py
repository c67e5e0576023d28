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
    right = sum(item.right for item in items)
    print(f"{len(items)} answers of {len({item.kind for item in items})} kinds, {right} of them right\n")
    print("| scorer | precision | recall | wrong verdicts |\n|---|---|---|---|")
    scorers: dict[str, Callable[[Labelled], bool]] = {"this package": ours, "math-verify alone": math_verify_alone}
    for name, scorer in scorers.items():
        verdicts = [(scorer(item), item.right) for item in items]
        precision = accuracy([int(its) for mine, its in verdicts if mine])
        recall = accuracy([int(mine) for mine, its in verdicts if its])
        cells = [f"{each.value:.1%} [{each.low:.1%}, {each.high:.1%}]" for each in (precision, recall)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {sum(mine != its for mine, its in verdicts)} |")


if __name__ == "__main__":
    main()
