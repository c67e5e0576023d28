import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.discovery.activations import disagreements, store
from tests.discovery import conftest
from tests.discovery.collecting import LAYERS, SAE_LAYER, random_encoder
from tests.discovery.conftest import Studied
from tests.discovery.test_store import ENVIRONMENT, written
from tests.shared_data import ROOT

studied = conftest.studied  # a fixture of the discovery tests
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks() == Ranks(0, 1, 0)
    assert Ranks().first
    Ranks().wait()  # for nobody
    for name, value in zip(NAMES, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(rank=5, world=8, local=1)
    assert not Ranks.from_environment().first


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_wait_for_each_other(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `collecting` has it.
    monkeypatch.setattr(store, "SHARD_TRACES", 1)
    monkeypatch.setattr(store, "PASS_TOKENS", 200)
    traces = written(tmp_path / "traces.jsonl", studied.traces)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
            "-m", "tests.discovery.collecting", str(traces), str(tmp_path / "two"),
        ],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store.collect(tmp_path / "one" / "store", studied.pair, studied.traces, LAYERS)
    disagreements.fill(
        tmp_path / "one" / "gates", studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1"
    )
    for name in ("store", "gates"):
        one, two = (
            {path.name: path.read_bytes() for path in (tmp_path / world / name).iterdir()} for world in ("one", "two")
        )
        assert len(one) == 13 and one == two
