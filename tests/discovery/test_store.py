from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.discovery import store as module
from lm_eval_hybrid.discovery.store import Store, collect
from lm_eval_hybrid.discovery.traces import Trace
from lm_eval_hybrid.errors import HybridError
from tests.discovery.conftest import SAE_LAYER, Studied

LAYERS = (SAE_LAYER, 0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several passes each."""
    monkeypatch.setattr(module, "TRACES", 5)
    monkeypatch.setattr(module, "TOKENS", 200)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_those_of_the_traces_read_whole(studied: Studied, tmp_path: Path) -> None:
    store = collect(tmp_path / "a", studied.thinking, studied.traces, LAYERS)
    onsets = torch.stack([t.residual[s.begin - 1] for t in studied.read for s in t.sentences])
    means = [t.residual[s.begin : s.end].mean(0) for t in studied.read for s in t.sentences]
    spans = [(i, s.begin, s.end) for i, t in enumerate(studied.read) for s in t.sentences]
    torch.testing.assert_close(store.onsets(SAE_LAYER), onsets, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(store.means(SAE_LAYER), torch.stack(means), rtol=1e-4, atol=1e-4)
    assert store.sentences().tolist() == [list(span) for span in spans]
    assert store.onsets(0).shape == onsets.shape
    assert not torch.allclose(store.onsets(0), onsets)
    assert store.shards == 3 == len(list((tmp_path / "a").glob("shard-*")))


def test_two_processes_write_what_one_does(studied: Studied, tmp_path: Path) -> None:
    collect(tmp_path / "one", studied.thinking, studied.traces, LAYERS)
    first = collect(tmp_path / "two", studied.thinking, studied.traces, LAYERS, rank=1, world=2)
    assert first.missing() == [0, 2]
    with pytest.raises(HybridError, match="found 2 of 3 shards missing; run the same command again"):
        first.onsets(0)
    collect(tmp_path / "two", studied.thinking, studied.traces, LAYERS, rank=0, world=2)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.parametrize("end", range(4))
def test_an_end_at_any_moment_is_made_good(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    collect(tmp_path / "whole", studied.thinking, studied.traces, LAYERS)
    written, write = [], module.write_file

    def killed(path: Path, data: bytes) -> None:
        if len(written) == end:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.dead.new").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    with monkeypatch.context() as context:
        context.setattr(module, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "torn", studied.thinking, studied.traces, LAYERS)
    passes = []
    residuals = module._residuals
    monkeypatch.setattr(module, "_residuals", lambda *args: passes.append(len(args[1])) or residuals(*args))
    collect(tmp_path / "torn", studied.thinking, studied.traces, LAYERS)
    whole = bytes_of(tmp_path / "whole")
    assert {name: data for name, data in bytes_of(tmp_path / "torn").items() if name in whole} == whole
    # What was done is not done again.
    assert sum(passes) == len(studied.traces) - 5 * max(0, end - 1)


def test_a_folder_is_of_one_kind(studied: Studied, tmp_path: Path) -> None:
    collect(tmp_path, studied.thinking, studied.traces[:5], LAYERS)
    for traces, layers, model, said in (
        (studied.traces, LAYERS, studied.thinking, "same traces; found others"),
        (studied.traces[:5], (0,), studied.thinking, "same layers; found others"),
        (studied.traces[:5], LAYERS, studied.base, "same weights; found others"),
    ):
        with pytest.raises(HybridError, match=said):
            collect(tmp_path, model, traces, layers)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(HybridError, match="found others"):
        collect(tmp_path, studied.thinking, studied.traces[:5], LAYERS)


def test_a_shard_that_was_damaged_is_named(studied: Studied, tmp_path: Path) -> None:
    store = collect(tmp_path, studied.thinking, studied.traces, LAYERS)
    store.path(1).write_bytes(store.path(1).read_bytes()[:100])
    with pytest.raises(HybridError, match=r"shard-00001\.safetensors: must be a shard that was written whole"):
        store.onsets(0)


def test_a_trace_without_sentences_has_no_rows(studied: Studied, tmp_path: Path) -> None:
    blank = [replace(studied.traces[0], text=" \n "), *studied.traces[1:3]]
    store = collect(tmp_path, studied.thinking, blank, LAYERS)
    assert set(store.sentences()[:, 0].tolist()) == {1, 2}


def test_a_full_disk_is_said_and_finished_work_stays(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_file

    def full(path: Path, data: bytes) -> None:
        if path.name == "shard-00001.safetensors":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(module, "write_file", full)
    with pytest.raises(HybridError, match="No space left on device; make some and run the same command again"):
        collect(tmp_path, studied.thinking, studied.traces, LAYERS)
    assert Store(tmp_path, LAYERS, 3).missing() == [1, 2]


def test_no_traces_make_an_empty_store(studied: Studied, tmp_path: Path) -> None:
    traces: list[Trace] = []
    assert collect(tmp_path, studied.thinking, traces, LAYERS).shards == 0
