import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import READABLE, WRITABLE, convert
from lm_eval_hybrid.commands.main import main
from tests.results.outputs import PLAIN, STEERED, samples, write
from tests.tiny_system import TinySystem, write_system

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


@pytest.fixture
def shelf(system: TinySystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of bundles with tiny@1.0.0."""
    shutil.copytree(system.bundle, tmp_path / "shelf" / "tiny" / "1.0.0")
    monkeypatch.setenv("LM_EVAL_HYBRID_BEHAVIORS", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Run:
    """Runs an action: (exit status, output, errors)."""

    def call(*argv: object) -> tuple[int, str, str]:
        status = main(["behaviors", *map(str, argv)])
        return (status, *capsys.readouterr())

    return call


def test_list_and_show(shelf: Path, run: Run) -> None:
    status, shown, _ = run("list")
    assert status == 0
    assert "tiny" in shown and "embedded" in shown and "best gap recovered" in shown
    status, shown, _ = run("show", "tiny@1")
    assert status == 0
    assert "Random vectors for tests" in shown and "cosine similarity" in shown
    status, _, error = run("show", "unknown")
    assert status == 2
    assert error.startswith("lm-eval-hybrid: error: behaviors=unknown: ") and error.count("\n") == 1


def test_validate_lists_every_fault_of_every_bundle(shelf: Path, run: Run, tmp_path: Path) -> None:
    assert run("validate", "tiny") == (0, f"{shelf / 'tiny' / '1.0.0'}: sound\n", "")
    broken = Path(shutil.copytree(shelf / "tiny" / "1.0.0", tmp_path / "broken"))
    (broken / "README.md").unlink()
    tensors = (broken / "tensors.safetensors").read_bytes()
    (broken / "tensors.safetensors").write_bytes(tensors[:-1] + b"\x01")
    status, shown, error = run("validate", broken, "tiny")
    assert (status, error) == (1, "")
    faults = shown.splitlines()
    assert len(faults) == 3
    assert "tensors.safetensors: sha256 is" in faults[0]
    assert "README.md: no such file" in faults[1]
    assert faults[2].endswith("1.0.0: sound")
    fields = yaml.safe_load((broken / "behavior.yaml").read_text())
    fields["base"].update(hidden_size=0, layers=0)
    (broken / "behavior.yaml").write_text(yaml.safe_dump({**fields, "license": ""}))
    status, shown, _ = run("validate", broken)
    assert status == 1
    assert [line.split(": ")[1] for line in shown.splitlines()] == ["license", "base.hidden_size", "base.layers"]


def test_a_new_version_of_an_edited_copy(shelf: Path, run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shelf / "tiny" / "1.0.0", tmp_path / "copy"))
    tensors = load_file(copy / "tensors.safetensors")
    save_file({**tensors, "bias": 2 * tensors["bias"]}, copy / "tensors.safetensors")
    status, shown, _ = run("new-version", "tiny", copy)
    assert status == 0
    assert "This needs a minor step: 1.0.0 -> 1.1.0 or above. 1.1.0 is enough." in shown
    assert shown.splitlines()[-1].endswith(f"written to {shelf / 'tiny' / '1.1.0'}")
    assert run("validate", "tiny@1.1.0")[0] == 0
    status, shown, _ = run("diff", "tiny@1.0", "tiny@1.1")
    assert status == 0
    assert "tiny@1.0.0#" in shown and "(+100.0%)" in shown
    assert run("diff", "tiny@1.0", "tiny@1.0")[1].splitlines()[-1] == "Nothing differs."
    status, _, error = run("new-version", "tiny@1.1.0", shelf / "tiny" / "1.1.0")
    assert (status, "no change from" in error) == (2, True)


def test_pack_and_unpack(shelf: Path, run: Run, tmp_path: Path) -> None:
    status, shown, _ = run("pack", "tiny", tmp_path / "tiny.zip")
    assert status == 0 and "sha256=" in shown
    status, shown, _ = run("unpack", tmp_path / "tiny.zip", "--into", tmp_path / "other")
    assert (status, shown) == (0, f"{tmp_path / 'other' / 'tiny' / '1.0.0'}\n")
    assert run("validate", tmp_path / "other" / "tiny")[0] == 0
    status, _, error = run("pack", "tiny", tmp_path / "tiny.zip")
    assert status == 2 and error.count("\n") == 1


def test_results_are_recorded_in_the_bundles_folder(shelf: Path, run: Run, tmp_path: Path) -> None:
    bundle = Bundle.load(shelf / "tiny" / "1.0.0")
    policy = {"gate": "disagreement", "select": "guardrail", "coefficients": [0.5, 1.0], "windows": [1, 0], "seed": 7}
    said = {"hybrid_tensors": bundle.manifest.files["tensors.safetensors"], "hybrid_policy": policy}
    write(tmp_path / "out", "base", {"toy": samples([0, 1] * 20)}, **said)
    write(tmp_path / "out", "hybrid", {"toy": samples([1, 1] * 20)}, tokens=[STEERED, PLAIN] * 20, **said)
    write(tmp_path / "out", "thinking", {"toy": samples([1, 1] * 20)}, **said)
    status, shown, _ = run("record", "tiny", tmp_path / "out")
    assert status == 0 and shown.startswith("1 results recorded: tiny@1.0.0#")
    saved = Bundle.load(shelf / "tiny" / "1.0.0")
    (result,) = saved.manifest.results
    assert result.scores == {"base": 0.5, "hybrid": 1.0, "thinking": 1.0}
    assert (result.gap_recovered, result.gap_interval) == (1.0, (1.0, 1.0))
    assert (result.documents, result.seed, result.harness_version) == (40, 7, "0.4.13")
    assert (result.steered_fraction, result.changed_fraction) == (round(3 / 9, 4), round(2 / 9, 4))
    assert "100% [100, 100]" in (shelf / "tiny" / "1.0.0" / "README.md").read_text()
    assert "100% [100, 100] toy" in " ".join(run("list")[1].split())
    # The tensors are the same, so that recording again is no mistake.
    assert run("record", "tiny", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hybrid_tensors": "e" * 64}, "must be of this bundle's tensors"),
        ({"hybrid_tensors": None}, "must be of this bundle's tensors"),
        ({"hybrid_policy": {"gate": "always", "seed": 7}}, "gate=always; results must be of the bundle's own policy"),
    ],
)
def test_results_of_other_tensors_or_policies_are_refused(
    shelf: Path, run: Run, tmp_path: Path, change: dict, message: str
) -> None:
    bundle = Bundle.load(shelf / "tiny" / "1.0.0")
    said = {"hybrid_tensors": bundle.manifest.files["tensors.safetensors"], "hybrid_policy": {"seed": 7}, **change}
    for arm in ("base", "hybrid", "thinking"):
        write(tmp_path / "out", arm, {"toy": samples([0, 1] * 20)}, **said)
    status, _, error = run("record", "tiny", tmp_path / "out")
    assert status == 2 and message in error
    assert Bundle.load(shelf / "tiny" / "1.0.0").identity == bundle.identity


def test_a_task_without_all_arms_is_no_result(shelf: Path, run: Run, tmp_path: Path) -> None:
    write(tmp_path / "out", "hybrid", {"toy": samples([0, 1])})
    status, _, error = run("record", "tiny", tmp_path / "out")
    assert status == 2 and "toy: no task has runs of all of base, hybrid, thinking" in error


def test_export_lists_losses_and_import_reads_the_file(
    shelf: Path, system: TinySystem, run: Run, tmp_path: Path
) -> None:
    key = Bundle.load(system.bundle).manifest.behaviors[0].key
    status, shown, _ = run("export", "tiny", "--behavior", key, "--format", "steered", "--out", tmp_path / "one.pt")
    assert status == 0
    assert [line.split(":")[0] for line in shown.splitlines()[1:]].count("lost") == len(shown.splitlines()) - 1 >= 2
    models = ["--base", system.base, "--thinking", system.thinking]
    status, shown, _ = run("import", tmp_path / "one.pt", *models, "--out", shelf / "one" / "0.1.0", "--license", "MIT")
    assert status == 0 and shown.startswith("one@0.1.0#")
    assert run("validate", "one@0.1")[0] == 0
    status, _, error = run("export", "tiny", "--format", "gguf", "--out", tmp_path / "one.gguf")
    assert status == 2 and key in error
    status, _, error = run("export", "tiny", "--behavior", key, "--format", "gguf", "--out", tmp_path / "one.pt")
    assert status == 2 and "exists already" in error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.write_text("words"), "it must be one of reference"),
        (lambda path: path.mkdir(), "a folder of unknown format"),
    ],
)
def test_impossible_imports_are_refused(run: Run, tmp_path: Path, make: Callable, message: str) -> None:
    make(tmp_path / "source")
    arguments = ["--base", "embedded:base", "--thinking", "embedded:thinking", "--out", tmp_path / "x" / "1.0.0"]
    status, _, error = run("import", tmp_path / "source", *arguments)
    assert status == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_the_schema_is_json(run: Run) -> None:
    status, shown, _ = run("schema")
    assert status == 0
    assert json.loads(shown)["title"].startswith("behavior.yaml, schema version")


def test_every_action_has_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["behaviors", "--help"])
    shown = capsys.readouterr().out
    for action in ("list", "show", "validate", "diff", "new-version", "record", "pack", "unpack", "push", "pull"):
        assert action in shown
        with pytest.raises(SystemExit) as end:
            main(["behaviors", action, "--help"])
        assert end.value.code == 0


def test_the_formats_that_can_be_named_are_those_that_can_be_converted() -> None:
    assert tuple(convert._READERS) == READABLE and tuple(convert._WRITERS) == WRITABLE
