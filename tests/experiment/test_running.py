"""Experiments on a tiny system: what is run, kept, gone on from and told."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.commands import main as cli
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import locked
from lm_eval_hybrid.common.paths import tasks_dir
from lm_eval_hybrid.experiment import gap_file
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.running import run
from lm_eval_hybrid.results import outputs
from tests.tiny_system import TinySystem, write_system

ARMS = ("base", "hybrid", "thinking", "bias-only", "random-vectors")
REMOTE_BATCH = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(6)]


@pytest.fixture(scope="module", autouse=True)
def our_tasks_alone() -> Iterator[None]:
    """The harness reads its 13,000 task files anew for every experiment, which none of these needs."""
    import lm_eval.tasks

    class Ours(lm_eval.tasks.TaskManager):
        def __init__(self, include_path: Any = None, include_defaults: bool = True, metadata: Any = None) -> None:
            super().__init__(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", Ours)
        yield


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REMOTE_BATCH), encoding="utf-8")
    return folder


def arguments(system: TinySystem, rows: Path, out: Path, arms: str = ",".join(ARMS), **more: str) -> list[str]:
    found = ["run", "--behaviors", str(system.bundle), "--tasks", "gsm8k_hybrid", "--arms", arms, "--out", str(out)]
    found += ["--gen_kwargs", "max_gen_toks=24", "--metadata", json.dumps({"data_dir": str(rows)}), "--device", "cpu"]
    return found + [part for name, value in more.items() for part in (f"--{name}", value)]


def experiment(system: TinySystem, rows: Path, **changes: Any) -> Experiment:
    fields = {
        "behaviors": str(system.bundle),
        "tasks": ["gsm8k_hybrid"],
        "arms": ARMS,
        "gen_kwargs": {"max_gen_toks": 24},
        "metadata": {"data_dir": str(rows)},
        "device": "cpu",
    }
    return Experiment.model_validate(fields | changes)


def told(folder: Path) -> dict[str, Any]:
    """gap.json, timings aside."""
    content = json.loads((folder / gap_file.GAP_FILE).read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in ("timings", "command")}


@pytest.fixture(scope="module")
def finished(system: TinySystem, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert cli.main(arguments(system, rows, folder)) == 0
    yield folder


def test_every_arm_leaves_what_the_harness_leaves(finished: Path) -> None:
    for arm in ARMS:
        names = sorted(path.name.split("_20")[0] for path in (finished / arm).iterdir())
        assert names == ["done.json", "results", "samples_gsm8k_hybrid", "tokens_gsm8k_hybrid"]
    runs = outputs.read(finished)
    assert list(runs.arms("gsm8k_hybrid")) == list(ARMS)
    assert {tuple(d.doc_hash for d in run.documents) for run in runs.runs} == {
        tuple(d.doc_hash for d in runs.runs[0].documents)
    }


@pytest.mark.slow
def test_answers_are_those_of_lm_eval(finished: Path, system: TinySystem, rows: Path, tmp_path: Path) -> None:
    """One arm through the harness's own command line gives the same tokens, though there the model was not another."""
    model = f"arm=bias-only,behaviors={system.bundle}"
    cli.main(
        [
            *("eval", "--model", "hybrid", "--model_args", model, "--tasks", "gsm8k_hybrid", "--device", "cpu"),
            *("--gen_kwargs", "max_gen_toks=24", "--metadata", json.dumps({"data_dir": str(rows)})),
            *("--output_path", str(tmp_path), "--log_samples"),
        ]
    )
    (theirs,) = outputs.read(tmp_path).runs
    ours = outputs.read(finished).arms("gsm8k_hybrid")["bias-only"]
    assert list(ours.answers()) == list(theirs.answers())
    assert ours.fingerprint == theirs.fingerprint


def test_gap_file_says_what_it_rests_on(finished: Path, system: TinySystem) -> None:
    content, plan = gap_file.load(finished / gap_file.GAP_FILE)
    assert plan.arms == ARMS
    assert content["bundle"]["identity"].startswith("tiny@1.0.0#")
    assert content["models"]["base"].startswith(str(system.base))
    assert content["seeds"] == {"decoding": 0, "harness": 0, "bootstrap": 0}
    assert content["versions"]["lm_eval"]
    assert content["hardware"]["cores"] == os.cpu_count()
    (task,) = content["tasks"]
    assert [arm["arm"] for arm in task["arms"]] == list(ARMS)
    for one in content["runs"]:
        assert len(one["right"]) == len(REMOTE_BATCH)
        assert len(one["fingerprint"]) == len(one["answers_sha256"]) == 64
    assert len({one["fingerprint"] for one in content["runs"]}) == len(ARMS)


def test_a_finished_arm_is_not_run_again(finished: Path, system: TinySystem, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    lines: list[str] = []
    before = told(folder)
    run(experiment(system, rows, arms=("base", "hybrid")), folder, lines.append)
    assert lines == [f"{len(ARMS)} of {len(ARMS)} arms are finished already"]
    settled = run(experiment(system, rows, arms=("takeover",)), folder, lines.append)
    assert any("arm 1 of 1: takeover" in line for line in lines)
    content = gap_file.write(folder, settled, [])
    assert [r for r in content["runs"] if r["arm"] != "takeover"] == before["runs"]


def test_an_arm_whose_files_are_gone_is_run_again(
    finished: Path, system: TinySystem, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    for path in (folder / "hybrid").glob("results_*"):
        path.unlink()
    settled = run(experiment(system, rows), folder)
    gap_file.write(folder, settled, [])
    assert told(folder) == told(finished)


def test_rerun_finds_what_differs(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert cli.main(["rerun", str(finished / gap_file.GAP_FILE), "--out", str(again)]) == 0
    assert "the same answers in all 5 runs" in capsys.readouterr().out
    content = json.loads((finished / gap_file.GAP_FILE).read_text())
    content["versions"]["torch"] = "1.0"
    right = content["runs"][1]["right"]
    content["runs"][1]["right"] = ("0" if right[0] == "1" else "1") + right[1:]
    content["runs"][2]["answers_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert cli.main(["rerun", str(tmp_path / "other.json"), "--out", str(again)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "made with other versions torch: 1.0 then" in shown
    assert "arm hybrid: " in shown and "right that were wrong" in shown
    assert "arm thinking: other answers, all as right or wrong as they were" in shown


@pytest.mark.parametrize(
    ("text", "found"), [("", "not a gap.json"), ("[]", "not a gap.json"), ('{"schema_version": 9}', "version 9")]
)
def test_what_is_no_gap_file(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "gap.json"
    path.write_text(text)
    with pytest.raises(HybridError, match=found):
        gap_file.load(path)
    with pytest.raises(HybridError, match="cannot be read"):
        gap_file.load(tmp_path / "none.json")


def test_one_run_at_a_time(system: TinySystem, rows: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "--out"), pytest.raises(HybridError, match="another run is at work in it"):
        run(experiment(system, rows), tmp_path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tasks": ["gsm8k_hybird"]}, "did you mean gsm8k_hybrid"),
        ({"behaviors": "nowhere"}, "nowhere"),
        ({"model_args": {"base": "/nowhere"}}, "no such folder"),
        ({"metadata": {"data_dir": "/nowhere"}}, "in /nowhere"),
    ],
)
def test_mistakes_are_named(
    system: TinySystem, rows: Path, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(HybridError, match=found):
        run(experiment(system, rows, **changes), tmp_path)


def test_sampled_answers_are_kept_as_well(system: TinySystem, rows: Path, tmp_path: Path) -> None:
    sampled = experiment(
        system, rows, arms=("hybrid",), gen_kwargs={"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    )
    run(sampled, tmp_path / "one")
    _interrupt(tmp_path / "two", sampled)
    run(sampled, tmp_path / "two")
    # Log-probabilities are sums, which a draft of another length takes in another order: tokens are compared.
    first, second = (
        [
            (answer.text, [record.token for record in answer.records])
            for answer in outputs.read(folder).runs[0].answers()
        ]
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert first == second


def _interrupt(folder: Path, plan: Experiment) -> None:
    """Run until three answers are written down."""
    from lm_eval_hybrid.harness.resuming import AnswersFile

    add = AnswersFile.add
    written = []

    def adding(self: AnswersFile, *arguments: Any) -> None:
        add(self, *arguments)
        written.append(arguments)
        if len(written) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswersFile, "add", adding)
        with pytest.raises(KeyboardInterrupt):
            run(plan, folder)


def test_answers_of_another_run_are_refused(system: TinySystem, rows: Path, tmp_path: Path) -> None:
    plan = experiment(system, rows, arms=("hybrid",))
    _interrupt(tmp_path, plan)
    (path,) = (tmp_path / "hybrid").glob("*.answers.jsonl")
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    head = json.loads(lines[0])
    head["identity"]["bundle"] = "another@1.0.0"
    path.write_text("\n".join([json.dumps(head), *lines[1:], lines[1][:40]]))
    with pytest.raises(HybridError, match="holds answers of a different run"):
        run(plan, tmp_path)
    path.write_text("\n".join([lines[0], *lines[1:], lines[1][:40]]))  # the last one torn
    run(plan, tmp_path)
    assert not list((tmp_path / "hybrid").glob("*.answers.jsonl"))


@pytest.mark.slow
def test_killed_five_times_ends_as_if_undisturbed(
    finished: Path, system: TinySystem, rows: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "lm_eval_hybrid", *arguments(system, rows, tmp_path / "out")]
    rng = random.Random(5)
    for _ in range(5):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(3, 14))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert told(tmp_path / "out") == told(finished)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(finished: Path, system: TinySystem, rows: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    command = [*launch, "-m", "lm_eval_hybrid", *arguments(system, rows, tmp_path / "out")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("arm 1 of 5") == 2, "the first process alone tells what goes on"
    ours, theirs = told(tmp_path / "out"), told(finished)
    assert ours["tasks"] == theirs["tasks"]
    assert ours["runs"] == theirs["runs"]
