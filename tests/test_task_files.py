"""The tasks as their YAMLs say: prompts to the letter, examples, groups, and what docs/tasks.md says of them."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks import __file__ as stock_init

from lm_eval_hybrid import autoload
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.scoring import data
from tests.tiny_system import write_system

STOCK = Path(stock_init).parent
PAGE = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
KINDS = (
    "numerical substitution", "digit expansion", "integer-decimal-fraction conversion", "adding operation",
    "reversing operation", "problem understanding", "distraction insertion",
)  # fmt: skip
GSM_PLUS = [f"gsm_plus_hybrid_{re.sub('[ -]', '_', kind)}" for kind in KINDS]
VARIANTS = ("", "_steps", "_user", "_qa")
TASKS = [
    *(f"{benchmark}_hybrid{variant}" for benchmark in ("gsm8k", "math500") for variant in VARIANTS),
    "gsm8k_hybrid_8shot", "math500_hybrid_4shot", "aime24_hybrid", "aime25_hybrid", *GSM_PLUS,
    "gsm8k_embedded", "math500_embedded",
]  # fmt: skip
GROUPS = ["gsm_plus_hybrid", "hybrid_paper"]
METRICS = {"exact_match", "thought_unfinished", "truncated", "steered_fraction", "changed_fraction"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"{n} + 4?", "answer": f"It is {n} + 4.\n#### {n + 4}"} for n in range(5)],
    "math500": [{"problem": f"Half of ${n}$?", "answer": rf"\frac{{{n}}}{{2}}"} for n in range(1, 4)],
    "aime24": [{"Problem": "Find $m+n$.", "Answer": 33}],
    "aime25": [{"problem": "Find $m+n$.", "answer": "70"}],
    "gsm_plus": [
        {"question": f"{kind}?", "answer": "4.33", "perturbation_type": kind} for kind in (*KINDS, "critical thinking")
    ],
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Our tasks over a few documents of each benchmark."""
    folder = tmp_path_factory.mktemp("rows")
    for name, rows in ROWS.items():
        write(folder / f"{name}_test.jsonl", rows)
    return TaskManager(include_path=str(paths.tasks_dir()), include_defaults=False, metadata={"data_dir": str(folder)})


def load(manager: TaskManager, name: str) -> ConfigurableTask:
    return manager.load([name])["tasks"][name]  # type: ignore[return-value]


def prompt(task: ConfigurableTask, shots: int | None = None) -> str:
    """What a model reads of the first document, with as many examples as the task has."""
    shots = task.config.num_fewshot if shots is None else shots
    return task.fewshot_context(task.eval_docs[0], num_fewshot=shots)  # type: ignore[return-value]


def test_these_are_the_tasks(manager: TaskManager) -> None:
    assert sorted(manager.all_tasks) == sorted(TASKS + GROUPS)
    assert sorted(manager.all_groups) == GROUPS


@pytest.mark.parametrize(
    ("variant", "before", "after"),
    [
        ("", "Question: ", "\nAnswer:"),
        (
            "_steps",
            "Task: Answer the question below. Explain your reasoning step by step.\n\n\n\nQuestion:\n",
            "\n\nStep by step answer:\n",
        ),
        ("_user", "User: ", "\nAssistant:"),
        ("_qa", "Answer the following question:\nQ: ", "\nA:"),
    ],
)
def test_prompts_to_the_letter(manager: TaskManager, variant: str, before: str, after: str) -> None:
    assert prompt(load(manager, f"gsm8k_hybrid{variant}")) == f"{before}0 + 4?{after}"
    before = before if variant else "Problem: "
    assert prompt(load(manager, f"math500_hybrid{variant}")) == f"{before}Half of $1$?{after}"


@pytest.mark.parametrize("name", TASKS)
def test_the_page_shows_what_the_task_says(manager: TaskManager, name: str) -> None:
    table = PAGE.partition("## Prompts")[2].partition("\n\nGroups")[0]
    shown = f"`{'gsm_plus_hybrid_...' if name in GSM_PLUS else name}`"
    (row,) = [line for line in table.splitlines() if shown in line]
    _, _, form, stops, tokens, version, _ = row.split("|")
    config = load(manager, name).config
    assert json.loads(re.findall("`(.*)`", form)[0]) == config.doc_to_text
    assert json.loads(stops.strip(" `")) == config.generation_kwargs["until"]
    assert int(tokens) == config.generation_kwargs["max_gen_toks"]
    assert float(version) == config.metadata["version"]
    # Greedy by default; without do_sample a temperature in --gen_kwargs samples.
    assert not {"do_sample", "temperature"} & config.generation_kwargs.keys()
    assert {metric["metric"] for metric in config.metric_list} == METRICS


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that offers documents to unchanged stock tasks."""
    for split in ("train", "test"):
        write(tmp_path / "openai" / "gsm8k" / f"{split}.jsonl", ROWS["gsm8k"])
    configuration = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test"))
    readme = f"---\nconfigs:\n- config_name: main\n  data_files:\n{configuration}---\n"
    (tmp_path / "openai" / "gsm8k" / "README.md").write_text(readme)
    solved = [row | {"solution": rf"It is $\boxed{{{row['answer']}}}$."} for row in ROWS["math500"]]
    write(tmp_path / "HuggingFaceH4" / "MATH-500" / "test.jsonl", solved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "stock", "folder", "count", "last"),
    [
        ("gsm8k_hybrid_8shot", "gsm8k_cot", "gsm8k", 8, "The answer is 8."),
        ("math500_hybrid_4shot", "minerva_math500", "minerva_math", 4, "I hope it is correct."),
    ],
)
def test_few_shots_are_those_of_the_stock_task(
    desk: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch,
    name: str, stock: str, folder: str, count: int, last: str,
) -> None:  # fmt: skip
    # The stock module of MATH asks for one version of antlr4, which reading prompts does not need.
    monkeypatch.setattr("importlib.metadata.version", lambda _: "4.11.0")
    theirs = load(TaskManager(include_path=str(STOCK / folder), include_defaults=False), stock)
    ours = load(manager, name)
    assert prompt(ours) == prompt(theirs)
    assert ours.config.num_fewshot == theirs.config.num_fewshot == count
    shots = prompt(ours).split("\n\nQ:" if "8shot" in name else "\n\nProblem:")
    assert len(shots) == count + 1 and shots[-2].endswith(last)
    assert prompt(ours, 2) == prompt(theirs, 2) != prompt(ours)
    assert set(ours.config.generation_kwargs["until"]) <= set(theirs.config.generation_kwargs["until"])


def test_examples_that_are_gone_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.__file__", str(tmp_path / "__init__.py"))
    for name, path, unsound in (
        ("gsm8k_shots", "gsm8k/gsm8k-cot.yaml", "fewshot_config: null\n"),
        ("math_shots", "minerva_math/utils.py", "def list_fewshot_samples():\n    return load()\n"),
    ):
        for text in (None, unsound, ""):
            if text is not None:
                (tmp_path / path).parent.mkdir(exist_ok=True)
                (tmp_path / path).write_text(text)
            with pytest.raises(HybridError, match=rf"the harness's tasks/{path} .*; install lm_eval 0.4.12"):
                getattr(data, name)()


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("aime24_hybrid", r"So $\boxed{033}$.", r"So $\boxed{34}$."),
        ("aime25_hybrid", r"$\boxed{m + n = 70}$", r"$\boxed{7}$"),
        ("gsm_plus_hybrid_digit_expansion", "It is 4.33", "It is 4.3"),
        ("gsm8k_hybrid_8shot", "0 + 4 = 4. The answer is 4.", "The answer is 5."),
        ("math500_hybrid_4shot", r"So $\boxed{0.5}$.", r"So $\boxed{5}$."),
    ],
)
def test_right_answers_score(manager: TaskManager, name: str, right: str, wrong: str) -> None:
    task = load(manager, name)
    scores = [task.process_results(task.eval_docs[0], [answer])["exact_match"] for answer in (right, wrong)]
    assert scores == [1.0, 0.0]


def test_the_parts_of_gsm_plus_are_its_kinds(manager: TaskManager) -> None:
    (group,) = manager.load(["gsm_plus_hybrid"])["groups"].values()
    kinds = [row["perturbation_type"] for task in group.get_all_tasks() for row in task.eval_docs]
    assert kinds == list(KINDS)


@pytest.mark.parametrize(
    ("group", "scores", "expected"),
    [
        ("hybrid_paper", {"gsm8k_hybrid": (0.5, 1319), "math500_hybrid": (1.0, 500)}, 0.75),
        ("gsm_plus_hybrid", {GSM_PLUS[0]: (0.5, 30), **dict.fromkeys(GSM_PLUS[1:], (1.0, 5))}, 0.75),
    ],
)
def test_groups_sum_up(manager: TaskManager, group: str, scores: dict[str, tuple[float, int]], expected: float) -> None:
    measured = {
        name: {"exact_match,none": score, "exact_match_stderr,none": 0.1, "sample_len": size}
        for name, (score, size) in scores.items()
    }
    total = manager.load([group])["groups"][group].aggregate(measured)  # type: ignore[arg-type]
    assert total["exact_match,none"] == expected


@pytest.mark.slow
def test_the_harness_finds_them_valid(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    autoload.register()
    monkeypatch.setattr(sys, "argv", ["lm_eval", "validate", "--tasks", ",".join(TASKS + GROUPS)])
    cli_evaluate()
    assert "All tasks found and valid" in capsys.readouterr().out


def test_stock_tasks_get_our_metrics_by_the_yamls_of_the_page(desk: Path) -> None:
    suite, renamed = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    (desk / "suites").mkdir()
    (desk / "suites" / "my_suite.yaml").write_text(suite)
    (desk / "suites" / "gsm8k_mine.yaml").write_text(renamed.replace("/path/to/lm_eval/tasks", str(STOCK)))
    folders = [STOCK / "gsm8k", STOCK / "hendrycks_math", desk / "suites"]
    manager = TaskManager(include_path=folders, include_defaults=False)
    assert manager.task_index["gsm8k"].tags and "gsm8k_mine" not in manager.task_index["math_word_problems"].tags
    model = HybridLM(**write_system(desk / "system").arguments, batch_size=8)
    settings = {"task_manager": manager, "gen_kwargs": {"max_gen_toks": 6}, "limit": 2, "bootstrap_iters": 0}
    results = simple_evaluate(model, tasks=["my_suite", "gsm8k_mine"], **settings)
    assert results is not None
    for task in ("gsm8k", "hendrycks_math500", "gsm8k_mine"):
        scores = {key.removesuffix(",none") for key in results["results"][task] if key.endswith(",none")}
        assert {metric for metric in scores if "stderr" not in metric} == METRICS, task
        assert 0 < results["results"][task]["steered_fraction,none"] <= 1
    assert prompt_of(results, "gsm8k") == prompt_of(results, "gsm8k_mine")
    assert prompt_of(results, "gsm8k").count("Question:") == 6, "the stock task's five examples are there"


def prompt_of(results: dict[str, Any], task: str) -> str:
    return results["samples"][task][0]["arguments"][0][0]
