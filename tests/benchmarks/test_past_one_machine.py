"""The benchmarks of two processes and of plans run; tests/remote runs the one of a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared_data import ROOT

pytestmark = pytest.mark.slow


def said(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes(tmp_path: Path) -> None:
    text = said("benchmarks.parallel", "--limit", "2", "--rounds", "1", "--out", str(tmp_path))
    assert "same tokens in every run" in text
    content = json.loads((tmp_path / "parallel.json").read_text())
    assert content["same"] is True
    assert all(run["whole"] > run["decoding"] > 0 for runs in content["seconds"].values() for run in runs)


def test_plans() -> None:
    text = said("benchmarks.planning", "--pairs", "embedded", "--batch_sizes", "4", "--limit", "4", "--documents", "2")
    assert "planned / actual" in text
    assert all(arm in text for arm in ("base", "hybrid", "thinking", "all"))


def test_both_models_at_once(tmp_path: Path) -> None:
    options = ("--pair", "embedded", "--batches", "1", "2", "--tokens", "12", "--rounds", "1", "--out", str(tmp_path))
    text = said("benchmarks.meanwhile", *options)
    assert "taking turns / drafting on" in text
    content = json.loads((tmp_path / "meanwhile.json").read_text())
    assert [(run["batch"], run["same"]) for run in content["measured"]] == [(1, 1), (2, 2)]
