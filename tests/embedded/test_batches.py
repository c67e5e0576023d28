"""The embedded tasks, many documents at once and one by one: the same answers."""

import json

import pytest
from lm_eval.api.instance import Instance

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.records import HybridAnswer
from tests.tolerances import approx

FORMS = {"gsm8k": ("Question", "question"), "math500": ("Problem", "problem")}
DOCUMENTS = 150  # of each of the two


def requests() -> list[Instance]:
    """As the tasks ask."""
    asked = []
    for family, (label, field) in FORMS.items():
        lines = (paths.embedded_dir() / f"{family}_embedded.jsonl").read_text().splitlines()[:DOCUMENTS]
        for i, line in enumerate(lines):
            prompt = f"{label}: {json.loads(line)[field]}\nAnswer:"
            settings = {"until": ["\n", "Question:", "Problem:"], "max_gen_toks": 400}
            asked.append(Instance("generate_until", {}, (prompt, settings), i, (family, i, 1)))
    return asked


@pytest.mark.slow
def test_batches_of_32_answer_as_one_by_one() -> None:
    answers = []
    for size in (32, 1):
        model = HybridLM(batch_size=size)
        answers.append(model.generate_until(requests(), disable_tqdm=True))
    assert len(set(answers[0])) > DOCUMENTS
    for together, alone in zip(*answers, strict=True):
        assert isinstance(together, HybridAnswer)
        assert isinstance(alone, HybridAnswer)
        assert together == alone
        assert together.generation is not None
        assert alone.generation is not None
        for mine, other in zip(together.generation.records, alone.generation.records, strict=True):
            assert (mine.token, mine.steered, mine.category) == (other.token, other.steered, other.category)
            assert (mine.coefficient is None) == (other.coefficient is None)
            assert (mine.coefficient or 0.0) == approx(other.coefficient or 0.0)
