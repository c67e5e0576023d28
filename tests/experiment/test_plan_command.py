"""`lm-eval-hybrid plan`: on the embedded pair, whose tasks come with the package."""

import json
from pathlib import Path

import pytest

from lm_eval_hybrid import autoload
from lm_eval_hybrid.commands.main import main
from lm_eval_hybrid.experiment import definition, running
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate.plan import make
from lm_eval_hybrid.models.placement import Machine

TASKS = "gsm8k_embedded,math500_embedded"
GIB = 2**30


def experiment(*arms: str, **given: object) -> Experiment:
    autoload.register()
    fields = {"behaviors": "embedded", "tasks": TASKS.split(","), "arms": arms, "limit": 4, "batch_size": "2", **given}
    return definition.read(fields, "a test")


def shown(capsys: pytest.CaptureFixture, *arguments: str, status: int = 0) -> str:
    assert main(["plan", "--tasks", TASKS, "--limit", "4", *arguments]) == status
    return capsys.readouterr().out


def test_help_has_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = capsys.readouterr().out
    assert "lm-eval-hybrid plan --tasks gsm8k_embedded,math500_embedded --limit 100" in said
    assert "gpus: [24GiB, 24GiB]" in said


def test_without_measurement_only_bounds_are_said(capsys: pytest.CaptureFixture) -> None:
    said = shown(capsys, "--arms", "base,hybrid")
    assert "at most: max_gen_toks" in said and "unknown" in said
    assert "embedded:base" in said and "0.001 B" in said and "float32" in said
    assert max(map(len, said.splitlines())) <= 100


def test_the_base_arm_needs_no_thinking_model() -> None:
    machine = Machine((), GIB)
    assert [need.role for need in make(experiment("base"), machine).needs] == ["base"]
    base, thinking = make(experiment("thinking"), machine).needs
    assert (base.rows, thinking.rows) == (0, 2)


def test_what_a_former_run_took_is_foretold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = experiment("base", gen_kwargs={"max_gen_toks": 20})
    running.run(run, tmp_path)
    (path,) = (tmp_path / "base").glob("results_*.json")
    totals = json.loads(path.read_text())["config"]["hybrid_totals"]
    (estimate,) = make(run, former=tmp_path).estimates
    assert estimate.tokens == totals["tokens"]
    assert estimate.seconds == pytest.approx(totals["seconds"], rel=0.25)
    # The hybrid was not run there: of it nothing is known but bounds.
    said = shown(capsys, "--arms", "base,hybrid", "--batch_size", "2", "--from", str(tmp_path))
    assert "measured:" in said
    assert "at most: max_gen_toks" in said and "unknown" in said


def test_some_documents_are_measured(capsys: pytest.CaptureFixture) -> None:
    found = make(experiment("base", "hybrid", gen_kwargs={"max_gen_toks": 20}), documents=1)
    base, hybrid = found.estimates
    assert base.tasks[0].origin == "measured: 2 answers, 2 at once"
    assert base.seconds and hybrid.seconds
    # Every embedded answer of the hybrid is longer than it may be here, and hence as long as it may be.
    assert hybrid.tokens == 8 * 20
    longest = max(max(task.prompts) for task in found.tasks)
    assert {need.tokens for need in found.needs} == {longest + 20}


def test_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text("gpus: [30MiB, 30MiB]\nmemory: 1GiB\n")
    said = shown(capsys, "--arms", "hybrid", "--machine", str(path), "--gen_kwargs", "max_gen_toks=40")
    assert "cuda:0" in said and "cuda:1" in said
    path.write_text("gpus: [10MiB]\nmemory: 1GiB\n")
    said = shown(capsys, "--arms", "hybrid", "--machine", str(path), "--batch_size", "8", status=1)
    assert "does not fit" in " ".join(said.split()) and "more memory than there is" in said.replace("\n", " ")


def test_auto_is_as_many_as_there_is_room_for() -> None:
    few = make(experiment("hybrid", batch_size="auto"), Machine((), 60 * 2**20)).needs[0].rows
    assert 1 <= few < 64
    assert make(experiment("hybrid", batch_size="auto"), Machine((), 64 * GIB)).needs[0].rows == 64


def test_models_on_a_server_take_nothing_here(capsys: pytest.CaptureFixture) -> None:
    said = shown(capsys, "--arms", "hybrid", "--model_args", "thinking_backend=remote")
    assert "a server" in said and "requests" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tasks", "gsm8k_embeded"], "--tasks has gsm8k_embeded, which the harness does not know"),
        (["--arms", "hybird"], "--arms has unknown"),
        (["--measure", "0"], "--measure is 0; must be 1 or more"),
        (["--from", "nowhere"], "nowhere has no results of model hybrid"),
        (["--batch_size", "many"], "batch_size='many' is not a batch size"),
        (["--model_args", "base=./nowhere"], "cannot load the base model and its tokenizer"),
        (["--model_args", "base_device=cuda:9"], "base_device='cuda:9' does not exist here"),
        (["--metadata", "x"], "--metadata x is not JSON"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "--tasks", TASKS, "--limit", "1", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lm-eval-hybrid: error: ") and complaint in said
