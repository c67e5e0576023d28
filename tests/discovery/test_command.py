import json
from pathlib import Path

import pytest

from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.cli import main
from lm_eval_hybrid.discovery.traces import read_prompts
from tests.discovery.test_pipeline import RECIPE
from tests.tiny_system import write_system


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a tiny pair, in the current folder."""
    monkeypatch.chdir(tmp_path)
    system = write_system(tmp_path / "system")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}: one. two?"}) + "\n" for i in range(12)))
    changes = {"base": str(system.base), "thinking": str(system.thinking), "prompts": str(prompts)}
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.model_copy(update=changes).model_dump_json())
    return path


def test_a_bundle_is_found_and_its_traces_stay_in_the_current_folder(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "found" / "mine" / "0.1.0"
    assert main(["discover", "--recipe", str(recipe), "--out", str(out)]) == 0
    assert Bundle.load(out).manifest.training.data.startswith("12 traces of ")
    assert [path.name for path in out.parent.iterdir()] == ["0.1.0"]
    assert (tmp_path / "mine-0.1.0.discover" / "traces.jsonl").is_file()
    assert len(read_prompts(tmp_path / "prompts.jsonl")) == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "mine/v1"], "version: "),
        (["--out", "mine/1.0.0", "--prompts", "absent.jsonl"], "absent.jsonl: must be a readable jsonl file"),
        (["--out", "mine/1.0.0", "--samples", "prompts.jsonl"], "prompts.jsonl:1: a trace must have"),
        (["--out", "mine/1.0.0", "--work", "mine.yaml"], "--work must be a folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], said: str
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["discover", "--recipe", str(recipe), *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lm-eval-hybrid: error: ") and said in line
    assert sorted(tmp_path.iterdir()) == before


def test_help_says_where_the_traces_are_kept(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["discover", "--help"])
    assert "NAME-VERSION.discover in the current folder" in " ".join(capsys.readouterr().out.split())
