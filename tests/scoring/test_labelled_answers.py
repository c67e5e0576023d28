"""The scorer beside careful readers: on answers written for this repository, and on recordings where present."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.results import recordings
from lm_eval_hybrid.results.recordings import scores
from lm_eval_hybrid.scoring.equality import same
from lm_eval_hybrid.scoring.metrics import is_right
from tests import shared_data
from tests.scoring import labelled
from tests.scoring.labelled import Labelled

RECORDED_LABELS = Path(__file__).with_name("recorded_labels.json")
RECORDED = shared_data.DATA / "reference" / "hybrid" / "results"
CASES = shared_data.DATA / "cases" / "scorer.jsonl"

# Answers that the scorer gets wrong. What begins to pass fails here, so that this list stays true.
MISSES = {
    "negative-number-07": "`minus 10` is read as 10",
    "run-on-04": "a further question without a header is not noticed where no answer is marked before it",
    "answer-first-then-reasons-03": "an answer without a verb, as in `**4 rides.**`, loses to the sentences after it",
    "complex-number-08": "`$i(7 + 2i) = 7i + 2i^2 = -2 + 7i$` begins with a product that is taken for an unsolved side",
    "letter-of-a-choice-23": "`which is choice C` does not count as a marked letter after a value",
    "word-13": "a question for `even or odd` is not known to ask for a word",
    "inequality-07": "an inequality at the end of a sentence counts less than the equation or inequality before it",
}


def test_the_set_has_right_and_wrong_answers_of_each_kind() -> None:
    items = labelled.load()
    assert len({item.id for item in items}) == len(items) >= 330
    verdicts = Counter((item.kind, item.right) for item in items)
    for kind in {item.kind for item in items}:
        assert verdicts[kind, True] >= 1 and verdicts[kind, False] >= 1, kind
        assert verdicts[kind, True] + verdicts[kind, False] >= 3, kind
    assert set(MISSES) <= {item.id for item in items}


def _parameter(item: Labelled) -> object:
    marks = [pytest.mark.xfail(reason=MISSES[item.id], strict=True)] if item.id in MISSES else []
    return pytest.param(item, id=item.id, marks=marks)


@pytest.mark.parametrize("item", [_parameter(item) for item in labelled.load()])
def test_the_verdict_is_that_of_a_careful_reader(item: Labelled) -> None:
    assert labelled.ours(item) is item.right


@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_verdicts_on_recorded_answers_are_those_of_a_careful_reader() -> None:
    labels = json.loads(RECORDED_LABELS.read_text(encoding="utf-8"))["answers"]
    right = {
        (name, score.task, score.model): score.right
        for name in sorted({label["file"] for label in labels})
        for score in scores(recordings.read(RECORDED / name))
    }
    assert not [label for label in labels if right[label["file"], label["task"], label["model"]] != label["right"]]


@pytest.mark.skipif(not CASES.is_file(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_cases_that_were_once_wrong() -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    assert cases and not [case for case in cases if _verdict(case) is not case["right"]]


def _verdict(case: dict[str, Any]) -> bool:
    if "text" in case:
        return is_right(case["text"], case["truth"], case["question"])
    return same(case["answer"], case["truth"])
