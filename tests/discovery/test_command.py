import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.commands.discover import STEPS
from lm_eval_hybrid.commands.main import main
from tests.discovery.conftest import Studied
from tests.discovery.test_pipeline import recipe, stages_in, times_of, write_problems
from tests.tiny_system import write_system

DESCRIPTION, WORK = "mine.yaml", "mine-0.1.0.discover"
OUT = "found/mine/0.1.0"


def write_recipe(folder: Path, **changes: Any) -> None:
    models = {role: str(folder / "system" / role) for role in ("base", "thinking")}
    (folder / DESCRIPTION).write_text(recipe(folder, **models, **changes).model_dump_json())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, studied: Studied) -> Path:
    """A folder with a tiny pair, its recipe, and the output of one run of the command."""
    folder = tmp_path_factory.mktemp("made")
    write_system(folder / "system")
    write_recipe(folder)
    lines = [json.dumps(asdict(trace)) + "\n" for trace in studied.traces]
    (folder / "traces.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["discover", "--recipe", DESCRIPTION, "--out", OUT]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the pair and its recipe but no output."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(made / "system", folder / "system")
    shutil.copy(made / "traces.jsonl", folder)
    write_recipe(folder)
    monkeypatch.chdir(folder)
    return folder


def discover(*options: str) -> int:
    return main(["discover", "--recipe", DESCRIPTION, *options])


def test_the_bundle_is_written_and_the_work_folder_is_in_the_current_one(made: Path) -> None:
    out = made / OUT
    assert Bundle.load(out).manifest.training.data.startswith("12 traces of ")
    assert not contents.faults(out)
    assert [path.name for path in out.parent.iterdir()] == ["0.1.0"]
    work = made / WORK
    assert stages_in(work) == sorted(
        ["traces", "activations", "sae-1", "sae-2", "gates", "vectors-0", "vectors-1", "calibration"]
    )
    shown = json.loads((work / "findings.json").read_text(encoding="utf-8"))
    assert shown["bundle"] == "mine@0.1.0" and (work / "findings.html").read_text().startswith("<!")


def test_a_bundle_is_replaced_only_with_overwrite(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(made)
    before = times_of(made)
    assert discover("--out", OUT) == 2
    assert "a bundle is there already" in capsys.readouterr().err and times_of(made) == before
    identity = Bundle.load(made / OUT).identity
    assert discover("--out", OUT, "--overwrite") == 0
    assert Bundle.load(made / OUT).identity == identity
    changed = {name for name, time in times_of(made).items() if before.get(name) != time}
    assert all(name.startswith((OUT, f"{WORK}/findings", f"{WORK}/.lock")) for name in changed), (
        "the stages were done already"
    )


def test_the_work_folder_can_be_chosen_and_filled_in_parts(here: Path) -> None:
    for until, done in (("traces", ["traces"]), ("gates", ["activations", "gates", "sae-1", "sae-2", "traces"])):
        assert discover("--out", OUT, "--work", "elsewhere/work", "--until", until) == 0
        assert stages_in(here / "elsewhere" / "work") == done
    assert not (here / "found").exists() and not (here / WORK).exists()


def test_samples_replace_generated_traces(here: Path) -> None:
    write_recipe(here, calibration={"problems": 0}, vectors={"seeds": 1})
    assert discover("--out", OUT, "--samples", "traces.jsonl") == 0
    training = Bundle.load(here / OUT).manifest.training
    assert training.data == f"12 traces of {here / 'system' / 'thinking'} in traces.jsonl"
    assert "traces" not in stages_in(here / WORK)


def test_models_can_be_given_instead_of_the_recipes(here: Path) -> None:
    (here / "system" / "base").rename(here / "other")
    write_recipe(here, calibration={"problems": 0}, vectors={"seeds": 1})
    assert discover("--out", OUT, "--samples", "traces.jsonl", "--base", "other") == 0
    assert Bundle.load(here / OUT).manifest.base.id == "other"


def test_another_chat_template_or_dtype_is_another_model(here: Path) -> None:
    def activations() -> int:
        assert discover("--out", OUT, "--samples", "traces.jsonl", "--until", "activations") == 0
        return len(list((here / WORK).glob("activations-*")))

    assert [activations(), activations()] == [1, 1]
    (here / "system" / "thinking" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert activations() == 2
    assert discover("--out", OUT, "--samples", "traces.jsonl", "--until", "activations", "--dtype", "bfloat16") == 0
    assert len(list((here / WORK).glob("activations-*"))) == 3


def test_a_dry_run_shows_every_stage_and_does_nothing(here: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(here.rglob("*"))
    assert discover("--out", OUT, "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("traces", "activations", "sae-1", "gates", "vectors-1", "calibration"))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "mine/v1"], "version: "),
        (["--out", "My/1.0.0"], "name: "),
        (["--out", "mine/1.0.0", "--base", "./absent"], "no such folder"),
        (["--out", "mine/1.0.0", "--thinking", "nobody/nothing"], "cannot load the thinking model and its tokenizer"),
        (["--out", "mine/1.0.0", "--base", "embedded:nothing"], "cannot load the base model and its tokenizer"),
        (["--out", "mine/1.0.0", "--samples", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["--out", "mine/1.0.0", "--samples", "problems.jsonl"], "a trace must have one of"),
        (["--out", "mine/1.0.0", "--work", "mine.yaml"], "cannot be written (File exists); name another --work folder"),
        (["--out", "mine/1.0.0", "--device", "cuda:9"], "the base model"),
        (["--out", "mine/1.0.0", "--device", "toaster"], "the base model"),
        (["--out", "mine.yaml/1.0.0"], "mine.yaml: not a writable folder"),
        (["--out", "mine/1.0.0", "--recipe", "absent"], "give a YAML file or one of embedded"),
        (["--out", "mine/1.0.0", "--recipe", "absent.yaml"], "give a YAML file or one of embedded"),
        (["--out", "mine/1.0.0", "--recipe", "traces.jsonl"], "give a YAML file or one of embedded"),
        (["--out", "mine/1.0.0", "--recipe", "."], "give a YAML file or one of embedded"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture, options: list[str], said: str
) -> None:
    check_mistake(here, capsys, options, said)


def check_mistake(here: Path, capsys: pytest.CaptureFixture, options: list[str], said: str) -> None:
    before = sorted(here.rglob("*"))
    assert discover(*options) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("lm-eval-hybrid: error: ")]
    assert len(errors) == 1 and errors[0] == lines[-1] and said in errors[0]
    assert "Traceback" not in "\n".join(lines)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problems": [{"data": "absent.jsonl"}]}, "absent.jsonl: cannot be read"),
        ({"problems": [{"data": "nobody/nothing"}]}, "nobody/nothing cannot be loaded from the hub"),
        ({"problems": [{"data": "problems.jsonl", "answer": "gold"}]}, "a problem must have question and gold"),
        ({"traces": {"count": 50}}, "20 different problems; traces and calibration need 53"),
        ({"sae": {"layers": [4]}}, "sae.layer is 4; it must be below 4"),
        ({"vectors": {"layer": 4}}, "steering.layer is 4; it must be below 4"),
        ({"prompt": {"thinking": "chat"}}, "has no chat template"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture, change: dict[str, Any], said: str
) -> None:
    write_recipe(here, **change)
    check_mistake(here, capsys, ["--out", OUT], said)


@pytest.mark.parametrize("option", ["--until=lunch", "--dtype=int8", "--surprise"])
def test_unknown_options_are_refused_by_argparse(option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        discover("--out", OUT, option)
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith("lm-eval-hybrid")


def test_changed_problems_make_a_new_stage(here: Path) -> None:
    write_recipe(here, calibration={"problems": 0})
    for count, folders in ((20, 1), (20, 1), (21, 2)):
        write_problems(here / "problems.jsonl", count)
        assert discover("--out", OUT, "--until", "traces") == 0
        assert len(list((here / WORK).glob("traces-*"))) == folders


def test_help_names_options_steps_and_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["discover", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "NAME-VERSION.discover in the current folder" in said
    assert "{" + ",".join(STEPS) + "}" in said
    for option in ("--recipe", "--out", "--base", "--thinking", "--samples", "--work", "--dry-run", "--device"):
        assert option in said
    assert "lm-eval-hybrid discover --recipe r1-qwen-1.5b" in said and "torchrun --nproc-per-node" in said
