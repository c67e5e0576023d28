"""Verdicts on recorded answers, beside those of a careful reader who saw the same texts."""

import json
from pathlib import Path

import pytest

from lm_eval_hybrid.results import recordings
from lm_eval_hybrid.results.rescoring import scores
from tests import shared_data

LABELS = Path(__file__).with_name("labelled_answers.json")
RECORDED = shared_data.DATA / "reference" / "hybrid" / "results"
PRECISION, RECALL = 0.98, 0.97


@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
def test_the_scorer_agrees_with_a_careful_reader() -> None:
    labels = json.loads(LABELS.read_text(encoding="utf-8"))["answers"]
    right = {
        (name, score.task, score.model): score.right
        for name in sorted({label["file"] for label in labels})
        for score in scores(recordings.read(RECORDED / name))
    }
    pairs = [(right[label["file"], label["task"], label["model"]], label["right"]) for label in labels]
    both = sum(mine and its for mine, its in pairs)
    assert both / sum(mine for mine, _ in pairs) >= PRECISION
    assert both / sum(its for _, its in pairs) >= RECALL
