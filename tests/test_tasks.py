"""The tasks and the model inside the real harness: its CLI and `simple_evaluate`, samples, caches and tables."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import simple_evaluate
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks import __file__ as stock_init

from lm_eval_hybrid import autoload
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.bundles.suite import compose
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.models.sources import ModelSource
from tests import shared_data
from tests.oracle.naive import NaivePolicy, NaiveSteering, naive_score
from tests.shared_data import ROOT
from tests.tiny_system import CHAT_TEMPLATE, TinySystem, write_system
from tests.tolerances import approx

DATA = shared_data.DATA / "benchmarks"
TASKS = ("gsm8k_hybrid", "math500_hybrid", "gsm8k_embedded", "math500_embedded")
GSM8K = [{"question": f"{n} + 4?", "answer": f"It is {n} + 4.\n#### {n + 4}"} for n in range(5)]
MATH500 = [{"problem": f"Half of ${n}$?", "answer": rf"\frac{{{n}}}{{2}}"} for n in range(1, 6)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"), CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def hybrid(system: TinySystem) -> HybridLM:
    return HybridLM(**system.arguments, batch_size=5)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of five documents a benchmark, under all their names."""
    folder = tmp_path_factory.mktemp("rows")
    for name, documents in (("gsm8k", GSM8K), ("math500", MATH500)):
        for file in (f"{name}_test.jsonl", f"{name}_embedded.jsonl"):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in documents))
    return folder


def ours(rows: Path) -> TaskManager:
    return TaskManager(include_path=str(paths.tasks_dir()), include_defaults=False, metadata={"data_dir": str(rows)})


def evaluate(model: HybridLM, rows: Path, *tasks: str, **settings: Any) -> dict[str, Any]:
    given = {"gen_kwargs": {"max_gen_toks": 12}, "task_manager": ours(rows), "bootstrap_iters": 0, **settings}
    results = simple_evaluate(model, tasks=list(tasks), **given)
    assert results is not None
    return results  # type: ignore[return-value]


def test_tasks_have_no_tag() -> None:
    assert not ours(Path()).all_tags, "a tag in an extra include path would replace the stock one"


@pytest.mark.slow
def test_tasks_have_names_of_their_own() -> None:
    stock = TaskManager(include_path=str(Path(stock_init).parent), include_defaults=False)  # ours come with defaults
    names = set(ours(Path()).all_tasks)
    assert set(TASKS) <= names and "gsm8k" in stock.all_tasks
    assert not names & set(stock.all_tasks)


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
@pytest.mark.parametrize("kind", ["hybrid", "embedded"])
def test_every_task_runs_to_its_metrics(
    hybrid: HybridLM, rows: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "embedded_dir", lambda: rows)
    task = f"{name}_{kind}"
    results = evaluate(hybrid, rows, task)
    metrics = {key.removesuffix(",none") for key in results["results"][task] if key.endswith(",none")}
    expected = {"exact_match", "steered_fraction", "changed_fraction", "truncated", "thought_unfinished"}
    assert {metric for metric in metrics if "stderr" not in metric} == expected
    assert 0 < results["results"][task]["steered_fraction,none"] <= 1
    assert results["n-samples"][task] == {"original": 5, "effective": 5}
    prompt, settings = results["samples"][task][0]["arguments"][0]
    assert prompt == (
        f"Question: {GSM8K[0]['question']}" if name == "gsm8k" else f"Problem: {MATH500[0]['problem']}"
    ) + ("\nAnswer:")
    assert settings["max_gen_toks"] == 12
    assert results["configs"][task]["num_fewshot"] == 0


def test_limits_are_written_in_the_tasks(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "embedded_dir", lambda: rows)
    tasks = ours(rows).load(list(TASKS))["tasks"]
    limits = [tasks[name].config.generation_kwargs["max_gen_toks"] for name in TASKS]
    assert limits == [2048, 2048, 400, 400]


def test_missing_data_are_one_line(hybrid: HybridLM, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"found no gsm8k_test.jsonl in .*; put the task"):
        evaluate(hybrid, tmp_path, "gsm8k_hybrid")


def test_right_answers_score(rows: Path) -> None:
    tasks = ours(rows).load(["gsm8k_hybrid", "math500_hybrid"])["tasks"]
    for row, task in ((GSM8K[2], tasks["gsm8k_hybrid"]), (MATH500[2], tasks["math500_hybrid"])):
        right, wrong = ("#### 6", "#### 7") if "question" in row else (r"\boxed{1.5}", r"\boxed{15}")
        assert task.process_results(row, [right])["exact_match"] == 1.0
        assert task.process_results(row, [wrong])["exact_match"] == 0.0


@pytest.fixture(scope="module")
def logged(system: TinySystem, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run through the harness's CLI, as users type it."""
    folder = tmp_path_factory.mktemp("logged")
    run_cli(
        system, "--tasks", "gsm8k_hybrid", "--metadata", f"data_dir={rows}", "--limit", "3",
        "--gen_kwargs", "max_gen_toks=12", "--output_path", str(folder), "--log_samples", "--batch_size", "2",
    )  # fmt: skip
    return folder


def run_cli(system: TinySystem, *flags: str) -> None:
    autoload.register()
    argv = ["lm_eval", "--model", "hybrid", "--model_args", f"behaviors={system.bundle}", *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        cli_evaluate()


def lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(pattern)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_tokens_beside_samples(logged: Path) -> None:
    tokens, samples = lines(logged, "tokens_*.jsonl"), lines(logged, "samples_*.jsonl")
    (tokens_path,), (samples_path,) = logged.rglob("tokens_*"), logged.rglob("samples_*")
    assert tokens_path == samples_path.with_name(samples_path.name.replace("samples_", "tokens_"))
    assert [line["doc_id"] for line in tokens] == [sample["doc_id"] for sample in samples] == [0, 1, 2]
    for line, sample in zip(tokens, samples, strict=True):
        assert set(line) == {
            "schema_version", "doc_id", "task", "arm", "bundle", "prompt", "text", "finish", "words", "records",
        }  # fmt: skip
        assert (line["task"], line["arm"], line["text"]) == ("gsm8k_hybrid", "hybrid", sample["resps"][0][0])
        assert line["prompt"] == sample["arguments"]["gen_args_0"]["arg_0"]
        records = [TokenRecord(**record) for record in line["records"]]
        assert "".join(record.text for record in records) == line["text"]
        steered = sum(record.steered for record in records) / len(records)
        assert steered == sample["steered_fraction"]


def test_the_results_file_says_what_ran(logged: Path, system: TinySystem) -> None:
    (path,) = logged.rglob("results_*.json")
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    assert config["hybrid_arm"] == "hybrid"
    assert config["hybrid_base"] == ModelSource.named("base", str(system.base)).identity(None)
    assert config["hybrid_bundle"].startswith("tiny@1.0.0#")
    assert config["hybrid_policy"]["coefficients"] == [0.5, 1.0]
    assert len(config["hybrid_fingerprint"]) == 64
    totals = config["hybrid_totals"]
    records = [record for line in lines(logged, "tokens_*.jsonl") for record in line["records"]]
    assert (totals["requests"], totals["tokens"]) == (3, len(records))
    assert totals["steered"] == sum(record["steered"] for record in records)
    assert totals["changed"] == sum(record["changed"] for record in records)
    assert totals["truncated"] == sum(line["finish"] == "length" for line in lines(logged, "tokens_*.jsonl"))


def test_predict_only_leaves_answers_and_tokens(system: TinySystem, rows: Path, tmp_path: Path) -> None:
    run_cli(
        system, "--tasks", "gsm8k_hybrid", "--metadata", f"data_dir={rows}", "--limit", "2", "--predict_only",
        "--gen_kwargs", "max_gen_toks=4", "--output_path", str(tmp_path / "out.json"),
    )  # fmt: skip
    assert len(lines(tmp_path, "tokens_*.jsonl")) == 2
    assert "exact_match" not in lines(tmp_path, "samples_*.jsonl")[0]


def test_a_cached_run_scores_as_the_first(hybrid: HybridLM, rows: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first, second = (evaluate(hybrid, rows, "gsm8k_hybrid", use_cache=cache) for _ in range(2))
    assert first["results"] == second["results"]
    assert first["results"]["gsm8k_hybrid"]["steered_fraction,none"] > 0


def test_chat_template_and_system_prompt(hybrid: HybridLM, rows: Path) -> None:
    results = evaluate(hybrid, rows, "gsm8k_hybrid", limit=1, apply_chat_template=True, system_instruction="Be brief.")
    prompt, _ = results["samples"]["gsm8k_hybrid"][0]["arguments"][0]
    assert prompt == "<system>Be brief.</system><user>Question: 0 + 4?\nAnswer:</user><assistant>"


def test_cached_requests_are_still_known_to_be_in_a_chat_template(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    system = write_system(tmp_path, CHAT_TEMPLATE, PromptSpec(thinking="chat"))
    first, second = (
        evaluate(
            HybridLM(**system.arguments), rows, "gsm8k_hybrid",
            limit=1, apply_chat_template=True, cache_requests=True,
        )["samples"]["gsm8k_hybrid"][0]
        for _ in range(2)
    )  # fmt: skip
    assert list((tmp_path / "requests").iterdir())
    assert first["resps"] == second["resps"]
    assert [r.thinking_logprob for r in first["resps"][0][0].generation.records] == [
        r.thinking_logprob for r in second["resps"][0][0].generation.records
    ]


def test_the_totals_are_of_one_run(hybrid: HybridLM, rows: Path, tmp_path: Path) -> None:
    settings = {"limit": 2, "use_cache": str(tmp_path / "cache")}
    hybrid.get_model_info()
    first, cached = (evaluate(hybrid, rows, "gsm8k_hybrid", **settings)["config"]["hybrid_totals"] for _ in range(2))
    assert (first["requests"], cached["requests"], cached["tokens"]) == (2, 0, 0)
    names = ("steered_fraction", "changed_fraction", "tokens_per_second")
    assert all(first[name] is not None and cached[name] is None for name in names)


def test_other_models_are_scored_by_what_they_have(system: TinySystem, rows: Path) -> None:
    results = simple_evaluate(
        "hf",
        model_args={"pretrained": str(system.base)},
        device="cpu",
        tasks=["gsm8k_hybrid"],
        task_manager=ours(rows),
        gen_kwargs={"max_gen_toks": 4},
        limit=2,
        bootstrap_iters=0,
    )
    assert results is not None
    scores = results["results"]["gsm8k_hybrid"]
    assert "exact_match,none" in scores
    assert "steered_fraction,none" not in scores


@pytest.fixture
def stock_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory that offers the real GSM8K to the unchanged stock task."""
    # Kept by name, wherever they are from: another test's few would be taken for these.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
    folder = tmp_path / "openai" / "gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(DATA / f"gsm8k_{split}.jsonl", folder / f"{split}.jsonl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: train\n    path: train.jsonl\n  - split: test\n    path: test.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_stock_gsm8k_runs_with_few_shots(hybrid: HybridLM, stock_gsm8k: None) -> None:
    results = simple_evaluate(hybrid, tasks=["gsm8k"], limit=20, gen_kwargs={"max_gen_toks": 4}, bootstrap_iters=0)
    assert results is not None
    scores = results["results"]["gsm8k"]
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(scores)
    assert results["n-samples"]["gsm8k"]["effective"] == 20
    prompt, _ = results["samples"]["gsm8k"][0]["arguments"][0]
    assert prompt.count("Question:") == 6


CHOICES = [
    {
        "id": str(n),
        "question": f"What is {n} and {n}?",
        "choices": {"text": [str(2 * n), str(n + 1), f"about {n}", "nothing"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[n % 4],
    }
    for n in range(6)
]


@pytest.mark.slow
def test_a_stock_multiple_choice_task_scores_as_the_naive_loop(
    system: TinySystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unchanged arc_easy over documents of our own, found in the working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "allenai" / "ai2_arc"
    folder.mkdir(parents=True)
    splits = ("train", "validation", "test")
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{files}---\n")
    monkeypatch.chdir(tmp_path)
    hybrid = HybridLM(**system.arguments, batch_size=7)
    results = simple_evaluate(hybrid, tasks=["arc_easy"], bootstrap_iters=0)
    assert results is not None
    assert 0 <= results["results"]["arc_easy"]["acc,none"] <= 1
    bundle = Bundle.load(system.bundle)
    steering, whole = bundle.manifest.steering, Steering.from_suite(compose([bundle]))
    plain = NaiveSteering(
        steering.layer, whole.bias, whole.vectors, bundle.manifest.sae.layer,
        *(bundle.tensors[f"sae.{name}"] for name in ("mean", "decoder.bias", "encoder.weight", "encoder.bias")),
        keys=whole.keys,
    )  # fmt: skip
    policy = NaivePolicy(coefficients=steering.coefficients, windows=steering.windows)
    models = hybrid.model, hybrid._thinking.model.model  # type: ignore[union-attr]
    encode = hybrid.tokenizer.encode
    steered = 0
    for sample in results["samples"]["arc_easy"][:2]:
        for (context, choice), ((total, greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            ids, continuation = encode(context), encode(choice)
            expected, same = naive_score(*models, None, plain, policy, ids, ids, continuation)
            assert float(total) == approx(expected, len(continuation))
            assert greedy == same
            unsteered = naive_score(*models, None, plain, replace(policy, gate="never"), ids, ids, continuation)
            steered += unsteered[0] != expected
    assert steered > 0


COMMAND = (
    "from lm_eval_hybrid import autoload; autoload.register(); "
    "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
)


def run_apart(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "flags", "line"),
    [
        ("", ("--limit", "0"), "lm-eval-hybrid: error: the run has no documents"),
        (",arm=sideways", (), "lm-eval-hybrid: error: arm='sideways' is unknown; choose one of base, hybrid"),
    ],
)
def test_mistakes_end_in_one_line(
    system: TinySystem, rows: Path, arguments: str, flags: tuple[str, ...], line: str
) -> None:
    done = run_apart(
        sys.executable, "-c", COMMAND, "--model", "hybrid", "--model_args", f"behaviors={system.bundle}{arguments}",
        "--tasks", "gsm8k_hybrid", "--metadata", f"data_dir={rows}", *flags,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr
