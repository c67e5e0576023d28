"""The documents' commands with models on a server run, on a real one."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.test_past_one_machine import said
from tests.remote.conftest import LocalNdif
from tests.test_documents import RECIPE, REMOTE, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", REMOTE)
def test_a_command_shown_runs(ndif: LocalNdif, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_HOST", ndif.host)
    (tmp_path / "my-recipe.yaml").write_text(RECIPE)
    assert run(command, tmp_path) or "discover" in command


def test_the_benchmark_runs(ndif: LocalNdif, tmp_path: Path) -> None:
    few = ("--tokens", "20", "--documents", "2", "--rounds", "1")
    text = said("benchmarks.remote", "--host", ndif.host, *few, "--out", str(tmp_path))
    assert "one document in flight" in text
    content = json.loads((tmp_path / "remote.json").read_text())
    assert all(run["same"] for kind in ("arms", "flights") for run in content[kind].values())


def test_the_benchmark_of_a_fit_runs(ndif: LocalNdif, tmp_path: Path) -> None:
    text = said("benchmarks.remote_fit", "--host", ndif.host, "--traces", "2", "--rounds", "1", "--out", str(tmp_path))
    assert "gradients' relative difference" in text
    content = json.loads((tmp_path / "remote_fit.json").read_text())
    assert content["difference"] < 1e-4
    assert content["step"]["requests"] >= 1
