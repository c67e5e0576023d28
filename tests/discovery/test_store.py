import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.activations import disagreements
from lm_eval_hybrid.discovery.activations import store as module
from lm_eval_hybrid.discovery.activations.store import Shards, collect
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.collecting import LAYERS, SAE_LAYER, random_encoder
from tests.discovery.conftest import RAW, Studied
from tests.oracle import models
from tests.shared_data import ROOT
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several passes each."""
    monkeypatch.setattr(module, "SHARD_TRACES", 5)
    monkeypatch.setattr(module, "PASS_TOKENS", 200)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The content of all files, except for those that a killed process left half written."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".new"}


def residual(backend: LocalBackend, ids: Sequence[int], layer: int) -> Tensor:
    """[n, d]: the output of a layer for one trace, by transformers alone."""
    seen: list[Tensor] = []
    handle = backend.layers[layer]._module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            backend.model._module(input_ids=torch.tensor([ids]))
    finally:
        handle.remove()
    return seen[0][0]


def check(
    pair: ModelPair,
    encoded: Sequence[EncodedTrace],
    store: module.ActivationStore,
    layers: Sequence[int],
) -> None:
    spans = [(i, s.begin, s.end) for i, one in enumerate(encoded) for s in one.sentences]
    assert store.sentences().tolist() == [list(span) for span in spans]
    for layer in layers:
        whole = [residual(pair.thinking, one.thinking_ids, layer).float() for one in encoded]
        onsets = torch.stack([whole[i][begin - 1] for i, begin, _ in spans])
        means = torch.stack([whole[i][begin:end].mean(0) for i, begin, end in spans])
        assert_close(store.rows("onset", layer)[:], onsets)
        assert_close(store.rows("mean", layer)[:], means)


def test_rows_equal_those_of_each_trace_read_alone(studied: Studied, tmp_path: Path) -> None:
    store = collect(tmp_path / "a", studied.pair, studied.traces, (0, 1, 2, 3))
    encoded = [studied.pair.encode(trace) for trace in studied.traces]
    check(studied.pair, encoded, store, range(4))
    assert store.count == 3 == len(list((tmp_path / "a").glob("shard-*")))
    assert not torch.allclose(store.rows("onset", 0)[:], store.rows("onset", 1)[:])
    some = torch.tensor([0, 3, 7])
    assert torch.equal(store.rows("mean", 2, some)[:], store.rows("mean", 2)[some])
    assert store.rows("mean", 2)[:].dtype == torch.float32


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt_neox", "mistral"])
def test_other_architectures(tmp_path: Path, family: str) -> None:
    backend = LocalBackend(models.tiny_model(family, 0), models.tiny_tokenizer())
    pair = ModelPair(backend, backend, RAW)
    traces = [Trace("what is it", "one a.\ntwo b.\nthree" + " c" * n) for n in (0, 3, 9)]
    layers = range(len(backend.layers))
    store = collect(tmp_path, pair, traces, layers)
    check(pair, [pair.encode(trace) for trace in traces], store, layers)


def test_half_precision_is_averaged_in_float32(tmp_path: Path) -> None:
    halved = LocalBackend(models.tiny_model("llama", 0).bfloat16(), models.tiny_tokenizer())
    pair = ModelPair(halved, halved, RAW)
    # Alone in its pass, hence the very same numbers but for the order in which they are added.
    trace = Trace("what is it", "one a.\ntwo b.\nthree three three three three")
    check(pair, [pair.encode(trace)], collect(tmp_path, pair, [trace], (0, 3)), (0, 3))


def test_layers_read_in_one_pass_equal_those_of_separate_passes(studied: Studied, tmp_path: Path) -> None:
    together = collect(tmp_path / "all", studied.pair, studied.traces, (3, 0, 2))
    for layer in (3, 0, 2):
        alone = collect(tmp_path / str(layer), studied.pair, studied.traces, (layer,))
        for kind in ("onset", "mean"):
            assert torch.equal(together.rows(kind, layer)[:], alone.rows(kind, layer)[:])


def test_passes_are_bounded_and_stop_at_the_highest_layer(studied: Studied, tmp_path: Path) -> None:
    sizes, above = [], []
    layers = [layer._module for layer in studied.thinking.layers]
    handles = [
        layers[0].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:2].numel())),
        layers[2].register_forward_hook(lambda module, inputs, output: above.append(output)),
    ]
    try:
        collect(tmp_path, studied.pair, studied.traces, (1, 0))
    finally:
        for handle in handles:
            handle.remove()
    assert len(sizes) > 3 and max(sizes) <= 200 and not above
    assert sum(sizes) < 1.2 * sum(len(studied.pair.encode(trace).thinking_ids) for trace in studied.traces)


def test_nothing_is_read_beyond_the_last_sentence(studied: Studied, tmp_path: Path) -> None:
    traces = [replace(trace, text=f"One a. Two b.</think>{trace.text}") for trace in studied.traces]
    longest = max(len(trace.prompt) for trace in traces) + len("One a. Two b.")
    widths: list[int] = []
    handle = studied.thinking.layers[0]._module.register_forward_hook(
        lambda module, inputs, output: widths.append(output.shape[1])
    )
    try:
        collect(tmp_path, studied.pair, traces, (1,))  # of the last layer that is read nnsight lets no other hook know
    finally:
        handle.remove()
    assert max(widths) == longest


def test_two_processes_write_what_one_does(studied: Studied, tmp_path: Path) -> None:
    collect(tmp_path / "one", studied.pair, studied.traces, LAYERS)
    first = collect(tmp_path / "two", studied.pair, studied.traces, LAYERS, Ranks(1, 2))
    assert first.missing() == [0, 2]
    with pytest.raises(HybridError, match="2 of 3 shards are missing; run the same command again"):
        first.rows("onset", 0)
    collect(tmp_path / "two", studied.pair, studied.traces, LAYERS, Ranks(0, 2))
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.parametrize("lost", range(3))
def test_only_a_lost_shard_is_written_again(studied: Studied, tmp_path: Path, lost: int) -> None:
    store = collect(tmp_path, studied.pair, studied.traces, LAYERS)
    whole = bytes_of(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.path(lost).unlink()
    (tmp_path / f".shard-{lost:05d}.safetensors.0badcafe.new").write_bytes(whole[store.path(lost).name][:99])
    collect(tmp_path, studied.pair, studied.traces, LAYERS)
    assert bytes_of(tmp_path) == whole
    changed = {path for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert changed == {store.path(lost)}


def test_a_folder_is_of_one_kind(studied: Studied, tmp_path: Path) -> None:
    collect(tmp_path, studied.pair, studied.traces[:5], LAYERS)
    other_prompt = RAW.model_copy(update={"prefix": "<think>"})
    for traces, layers, pair, said in (
        (studied.traces, LAYERS, studied.pair, "different traces"),
        (studied.traces[:4], LAYERS, studied.pair, "different traces"),
        (studied.traces[:5], (0,), studied.pair, "different layers"),
        (studied.traces[:5], LAYERS, replace(studied.pair, thinking=studied.base), "different thinking"),
        (studied.traces[:5], LAYERS, replace(studied.pair, base=studied.thinking), "different base"),
        (studied.traces[:5], LAYERS, replace(studied.pair, prompt=other_prompt), "different prompt"),
    ):
        with pytest.raises(HybridError, match=said):
            collect(tmp_path, pair, traces, layers)


def test_traces_without_sentences_have_no_rows(studied: Studied, tmp_path: Path) -> None:
    long = Trace("x" * 20000, "Too long. By far.")
    blank = [replace(studied.traces[0], text=text) for text in (" \n ", "", "</think>", "Not. All.</think>")]
    store = collect(tmp_path, studied.pair, [*blank, long, studied.traces[1]], LAYERS)
    assert set(store.sentences()[:, 0].tolist()) == {3, 5}
    none = collect(tmp_path / "none", studied.pair, blank[:2], LAYERS)
    assert none.sentences().shape == (0, 3)
    for kind in ("onset", "mean"):
        assert none.rows(kind, 0)[:].shape == (0, 32)


@pytest.mark.parametrize("layers", [(4,), (0, -1), ()])
def test_missing_layers_are_refused(studied: Studied, tmp_path: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(HybridError, match="are not all among the thinking model's 4, from 0"):
        collect(tmp_path / "s", studied.pair, studied.traces, layers)
    assert not (tmp_path / "s").exists()


def written(path: Path, traces: Sequence[Trace]) -> Path:
    path.write_text("".join(json.dumps(asdict(trace)) + "\n" for trace in traces))
    return path


def apart(traces: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.discovery.collecting", str(traces), str(folder)]


ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.slow
def test_a_killed_run_keeps_its_shards_and_can_continue(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TRACES", 1)
    traces = [replace(trace, prompt=f"{trace.prompt}{i}") for i in range(12) for trace in studied.traces]
    killed, folder = tmp_path / "killed", tmp_path / "killed" / "store"
    command = apart(written(tmp_path / "traces.jsonl", traces), killed)
    for wanted in (3, 40):
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (folder / f"shard-{wanted:05d}.safetensors").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wanted - 1 < len(list(folder.glob("shard-*"))) < len(traces)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    collect(folder, studied.pair, traces, LAYERS)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    collect(tmp_path / "whole", studied.pair, traces, LAYERS)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_is_reported_and_finished_shards_stay(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TRACES", 1)
    traces = [*studied.traces[:2], replace(studied.traces[2], text="One a. Two b. " * 50), studied.traces[3]]
    whole = collect(tmp_path / "whole", studied.pair, traces, LAYERS)
    limit = whole.path(2).stat().st_size - 1
    command = apart(written(tmp_path / "traces.jsonl", traces), tmp_path / "full")

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, preexec_fn=full, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "shard-00002.safetensors: cannot be written (File too" in last
    folder = tmp_path / "full" / "store"
    assert Shards(folder, 4).missing() == [2, 3] and not list(folder.glob(".*"))
    collect(folder, studied.pair, traces, LAYERS)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_wait_for_each_other(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `collecting` has it.
    monkeypatch.setattr(module, "SHARD_TRACES", 1)
    monkeypatch.setattr(module, "PASS_TOKENS", 200)
    traces = written(tmp_path / "traces.jsonl", studied.traces)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
            "-m", "tests.discovery.collecting", str(traces), str(tmp_path / "two"),
        ],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    collect(tmp_path / "one" / "store", studied.pair, studied.traces, LAYERS)
    disagreements.fill(
        tmp_path / "one" / "gates", studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1"
    )
    for name in ("store", "gates"):
        one, two = (
            {path.name: path.read_bytes() for path in (tmp_path / world / name).iterdir()} for world in ("one", "two")
        )
        assert len(one) == 13 and one == two
