"""The tokens file beside the harness's samples file."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import sanitize_model_name

from lm_eval_hybrid.decoding.records import Generation, TokenRecord
from lm_eval_hybrid.harness import records
from lm_eval_hybrid.harness.records import HybridAnswer

RECORD = TokenRecord(0, 5, "4", True, False, 1, "compute", 1.0, 0, -0.25, 5, -0.5, 5, -0.2)
ANSWER = HybridAnswer("4", Generation("4", (RECORD,), "eos"), "hybrid", "tiny@1.0.0#0", words={7: " four"})


def sample(doc_id: int, answer: str, filter_name: str = "none") -> dict[str, Any]:
    hashes = {"doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}
    return {
        "doc_id": doc_id,
        "arguments": [("2 + 2?", {"until": []})],
        "resps": [[answer]],
        "filtered_resps": [answer],
        "filter": filter_name,
        "target": "4",
        **hashes,
    }


def save(path: Path, samples: list[dict[str, Any]]) -> None:
    records.install_output_hooks()
    records.install_output_hooks()
    tracker = EvaluationTracker(output_path=str(path))
    tracker.general_config_tracker.log_experiment_args("hybrid", {"model": "tiny"}, None, None, False)
    tracker.save_results_aggregated({}, {"sums": samples})
    tracker.save_results_samples(task_name="sums", samples=samples)


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_a_line_a_document_beside_the_samples(tmp_path: Path, output: str) -> None:
    # A task with two filters logs every document twice.
    save(tmp_path / output, [sample(i, ANSWER, name) for name in ("strict", "flexible") for i in range(2)])
    (samples,) = tmp_path.rglob("samples_sums_*.jsonl")
    (tokens,) = tmp_path.rglob("tokens_sums_*.jsonl")
    assert tokens.parent == samples.parent
    assert tokens.name.removeprefix("tokens") == samples.name.removeprefix("samples")
    assert len(samples.read_text().splitlines()) == 4
    lines = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1]
    assert [TokenRecord(**record) for record in lines[0].pop("records")] == [RECORD]
    assert lines[0] == {
        "schema_version": 2,
        "doc_id": 0,
        "task": "sums",
        "arm": "hybrid",
        "bundle": "tiny@1.0.0#0",
        "prompt": "2 + 2?",
        "text": "4",
        "finish": "eos",
        "words": {"7": " four"},
    }


def test_other_models_samples_have_no_tokens(tmp_path: Path) -> None:
    save(tmp_path, [sample(0, "4")])
    assert list(tmp_path.rglob("samples_sums_*.jsonl"))
    assert not list(tmp_path.rglob("tokens_*"))


def test_a_file_that_cannot_be_written_does_not_lose_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    save(tmp_path / "out" / "below", [sample(0, ANSWER)])
    assert not list(tmp_path.rglob("tokens_*"))


@pytest.mark.parametrize(
    ("model_args", "name"),
    [
        (None, "embedded__hybrid"),
        ("", "embedded__hybrid"),
        ("arm=base,dtype=float32", "embedded__base"),
        ({"behaviors": "mine@1.0.0", "arm": "takeover"}, "mine@1.0.0__takeover"),
        ("behaviors=./some/where/my-bundle", "my-bundle__hybrid"),
        ({"behaviors": ["first", "/x/second"]}, "first+second__hybrid"),
    ],
)
def test_the_folder_is_named_after_bundle_and_arm(model_args: Any, name: str) -> None:
    """The harness would give each run another random name."""
    records.install_output_hooks()
    tracker = EvaluationTracker(output_path="out").general_config_tracker
    tracker.log_experiment_args("hybrid", model_args, None, None, False)
    assert tracker.model_name == name
    assert tracker.model_name_sanitized == sanitize_model_name(name)
