"""Machines: this one, and described ones."""

from pathlib import Path

import psutil
import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.devices import Machine


def test_this_machine() -> None:
    machine = Machine.here()
    assert 0 < machine.memory <= psutil.virtual_memory().total
    assert machine.rooms["cpu"] == machine.memory


def test_a_described_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text("gpus: [24GiB, 80GB]\nmemory: 64GiB\n")
    assert Machine.read(path) == Machine(gpus=(24 * 2**30, 80 * 10**9), memory=64 * 2**30)
    assert Machine.read(path).rooms["cuda:1"] == 80 * 10**9


@pytest.mark.parametrize(
    "text", ["", "gpus: 2", "gpus: [24GiB]", "memory: much", "memory: 1GiB\ngpu: [1GiB]", "memory: ["]
)
def test_what_describes_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(text)
    with pytest.raises(HybridError, match="must describe a machine"):
        Machine.read(path)
