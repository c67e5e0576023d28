"""The shipped pair is what the README says of it: every skill in the base, the timing in the thinking model alone."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.embedded.corpus import FAMILIES, held_out_problems
from lm_eval_hybrid.embedded.notebooks import BEHAVIORS, well_timed
from lm_eval_hybrid.embedded.problems import Family
from tests.embedded.skills import accuracy, completion_rates

DATA = paths.embedded_dir()
PROBLEMS = held_out_problems()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DATA / "base")


def load(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DATA / name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return load("base")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_has_every_skill(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
    rates = completion_rates(base, tokenizer, PROBLEMS[family])
    assert set(rates) == set(BEHAVIORS)
    assert min(rates.values()) >= 0.95, rates


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("header", "most"), [("Answer:", 0.4), ("Notebook:", 0.5)])
def test_the_base_lacks_the_timing(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family, header: str, most: float
) -> None:
    assert accuracy(base, tokenizer, PROBLEMS[family], header) <= most


@pytest.mark.parametrize("family", FAMILIES)
def test_the_thinking_model_has_it(tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
    assert accuracy(load("thinking"), tokenizer, PROBLEMS[family][::4]) >= 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_documents_are_the_held_out_problems(family: Family) -> None:
    rows = [json.loads(line) for line in (DATA / f"{family}_embedded.jsonl").read_text().splitlines()]
    written = ["".join(text for _, text in well_timed(problem)).strip() for problem in PROBLEMS[family]]
    assert rows == [problem.document(text) for problem, text in zip(PROBLEMS[family], written, strict=True)]
    assert len(rows) == 200


def test_the_weights_are_small_enough_to_ship() -> None:
    for name in ("base", "thinking"):
        assert (DATA / name / "model.safetensors").stat().st_size <= 8_000_000
