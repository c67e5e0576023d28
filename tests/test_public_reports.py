"""Inputs on which this package, or the harness below it, was once wrong without a word. See also tests/scoring."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.hybrid_lm import HybridLM

SCORED_ARMS = ("base", "hybrid", "thinking", "takeover", "bias-only")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(paths.tasks_dir()), include_defaults=False)


@pytest.fixture(scope="module")
def models() -> dict[str, HybridLM]:
    return {arm: HybridLM(arm=arm, device="cpu") for arm in SCORED_ARMS}


def score(model: HybridLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)]
    return model.loglikelihood(requests, disable_tqdm=True)


@pytest.mark.parametrize("arm", SCORED_ARMS)
def test_a_continuation_that_shares_its_token_with_the_context_is_scored(models: dict[str, HybridLM], arm: str) -> None:
    model = models[arm]
    assert len(model.tok_encode("Answer")) == len(model.tok_encode("Ans")), "one token spans both"
    ((logprob, _), (control, _)) = score(model, ("Ans", "wer"), ("Ans", "xyz"))
    assert logprob < -1e-3, "it is no certainty"
    assert control < -1e-3


def test_a_multiple_choice_task_with_shared_tokens(
    models: dict[str, HybridLM], manager: TaskManager, tmp_path: Path
) -> None:
    """Such a choice used to win whatever the model said."""
    rows = [{"stem": "Ans", "choices": ["wer", "xyz", "123", " 5"], "gold": gold} for gold in (1, 2, 3)]
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "task": "shared_token",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "mc.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{stem}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    for arm in ("base", "hybrid"):
        found = simple_evaluate(models[arm], tasks=[task], log_samples=True, task_manager=manager)
        for sample in found["samples"]["shared_token"]:
            values = [float(response[0][0]) for response in sample["resps"]]
            assert all(value < -1e-3 for value in values)


@pytest.mark.parametrize("arm", SCORED_ARMS)
def test_an_empty_continuation_is_refused(models: dict[str, HybridLM], arm: str) -> None:
    with pytest.raises(HybridError, match="the continuation of document 1 of task is empty"):
        score(models[arm], ("Ans", "wer"), ("Ans", ""))


@pytest.mark.parametrize("task", ["gsm8k_embedded", "math500_embedded"])
def test_asking_for_a_temperature_samples(models: dict[str, HybridLM], manager: TaskManager, task: str) -> None:
    """The documents' command: our tasks once said `do_sample: false`, which made every seed give the greedy answer."""
    answers, used = [], []
    for seed in (1, 2):
        found = simple_evaluate(
            models["base"],
            tasks=[task],
            gen_kwargs=f"temperature=0.7,top_p=0.95,seed={seed}",
            limit=3,
            log_samples=True,
            task_manager=manager,
        )
        answers.append([str(sample["resps"][0][0]) for sample in found["samples"][task]])
        used.append(found["config"]["hybrid_sampling"])
    assert answers[0] != answers[1]
    assert used == [[f"temperature=0.7, top_k=0, top_p=0.95, seed={seed}"] for seed in (1, 2)]


def test_the_embedded_pair_on_foreign_tasks_warns_once(
    models: dict[str, HybridLM], caplog: pytest.LogCaptureFixture
) -> None:
    """`lm_eval --model hybrid --tasks gsm8k` once printed 0.0 for the miniature pair, without a word."""
    model = models["base"]
    model.get_model_info()  # ends an earlier run
    for task in ("gsm8k_embedded", "gsm8k", "gsm8k"):
        request = Instance("generate_until", {}, ("1 + 1?", {"until": ["\n"], "max_gen_toks": 2}), 0, (task, 0, 1))
        model.generate_until([request], disable_tqdm=True)
    warnings = [record.message for record in caplog.records if "embedded pair" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("gsm8k: ") and "behaviors=" in warnings[0] and "behaviors list" in warnings[0]
    assert model.get_model_info()["hybrid_warnings"] == warnings
