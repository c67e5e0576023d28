"""Discovery with models on a real server: what is found there is what is found here."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.commands.main import main
from tests.remote.conftest import LocalNdif
from tests.test_documents import RECIPE

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)


def found(name: str, *options: str) -> Path:
    assert main(["discover", "--recipe", "mine.yaml", "--out", f"{name}/1.0.0", *options]) == 0
    return Path(f"{name}-1.0.0.discover")


def test_a_thinking_model_on_a_server(ndif: LocalNdif) -> None:
    here = found("here")
    there = found("there", "--thinking-backend", "remote", "--ndif-host", ndif.host)
    assert _texts(here) == _texts(there)
    for stage in ("activations", "gates"):
        ours, theirs = (_tensors(folder, stage) for folder in (here, there))
        assert ours.keys() == theirs.keys()
        assert len(ours) > 2
        for name, tensor in ours.items():
            if name.endswith("category"):  # of an autoencoder whose training began with last digits that differ
                assert (tensor == theirs[name]).float().mean() > 0.9
            else:
                assert torch.allclose(tensor, theirs[name], atol=1e-3), name
    behaviors = [Bundle.load(Path(name, "1.0.0")).manifest.behaviors for name in ("here", "there")]
    assert [each.key for each in behaviors[0]] == [each.key for each in behaviors[1]]


def _texts(folder: Path) -> list[str]:
    lines = next(folder.rglob("traces.jsonl")).read_text().splitlines()[1:]
    return [json.loads(line)["text"] for line in lines]


def _tensors(folder: Path, stage: str) -> dict[str, Tensor]:
    """Of all shards of a stage."""
    files = sorted(path for path in folder.rglob("*.safetensors") if stage in path.parent.name)
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_both_on_a_server(ndif: LocalNdif) -> None:
    """Nothing is trained here but the autoencoders, and what is found is as good."""
    found("here")
    found("both", "--base-backend", "remote", "--thinking-backend", "remote", "--ndif-host", ndif.host)
    here, there = (Bundle.load(Path(name, "1.0.0")) for name in ("here", "both"))
    assert [each.key for each in here.manifest.behaviors] == [each.key for each in there.manifest.behaviors]
    assert there.tensors["bias"].any()
    ours, theirs = (
        json.loads(Path(f"{name}-1.0.0.discover", "findings.json").read_text()) for name in ("here", "both")
    )
    assert ours["curves"].keys() == theirs["curves"].keys()
    for name, curve in ours["curves"].items():
        if name.endswith(("bias", "vectors")):
            begins = [points[0]["held_out"] for points in (curve, theirs["curves"][name])]
            ends = [min(point["held_out"] for point in points) for points in (curve, theirs["curves"][name])]
            assert begins[0] == pytest.approx(begins[1], rel=1e-3)
            assert ends[0] == pytest.approx(ends[1], rel=0.05)
