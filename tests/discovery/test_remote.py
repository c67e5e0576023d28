"""Discovery with models on a server gives what it gives with models in this process."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.activations import disagreements, readers, store
from lm_eval_hybrid.discovery.traces import sources
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.models.local import LocalBackend
from tests.decoding.comparing import simulated
from tests.discovery.collecting import LAYERS, SAE_LAYER, random_encoder
from tests.discovery.conftest import RAW, Studied
from tests.discovery.test_disagreements import TEXTS
from tests.oracle.tokenizers import byte_level_tokenizer, crossed_pair, metaspace_tokenizer
from tests.tolerances import LOGITS, assert_close

ROLES = [("base", "thinking"), ("base",), ("thinking",)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several passes each."""
    monkeypatch.setattr(store, "SHARD_TRACES", 5)
    monkeypatch.setattr(store, "PASS_TOKENS", 200)
    monkeypatch.setattr(readers, "LOGIT_BYTES", 4 * 400 * 150)


def moved(pair: ModelPair, roles: Sequence[str]) -> ModelPair:
    """The same, with some models on a server."""
    backends = {
        role: simulated(backend.model._module, backend.tokenizer) if role in roles else backend
        for role, backend in (("base", pair.base), ("thinking", pair.thinking))
    }
    return ModelPair(**backends, prompt=pair.prompt)


def check_gates(pair: ModelPair, traces: Sequence[Trace], roles: Sequence[str], folder: Path) -> None:
    for name, one in (("here", pair), ("there", moved(pair, roles))):
        disagreements.fill(folder / name, one, traces, random_encoder(), SAE_LAYER, "encoder-1")
    here, there = (disagreements.load(folder / name, len(traces)) for name in ("here", "there"))
    assert len(here.trace) > 3
    for name in ("trace", "column", "target", "category", "places"):
        assert torch.equal(getattr(here, name), getattr(there, name)), name
    assert torch.equal(here.top[:, 0], there.top[:, 0])  # of less likely ones, equals may come in another order
    assert_close(here.top_logprob, there.top_logprob, magnitude=LOGITS)


@pytest.mark.parametrize("roles", ROLES, ids="+".join)
def test_disagreements(studied: Studied, tmp_path: Path, roles: Sequence[str]) -> None:
    # Among them a trace that is nothing, and a prompt that leaves it no room.
    check_gates(studied.pair, [*studied.traces[:6], Trace("Q", ""), Trace("so " * 600, "x")], roles, tmp_path)


@pytest.mark.parametrize("roles", ROLES, ids="+".join)
def test_disagreements_of_other_vocabularies(tmp_path: Path, roles: Sequence[str]) -> None:
    models = crossed_pair(byte_level_tokenizer(100), metaspace_tokenizer())
    backends = [
        LocalBackend(model, tokenizer)
        for model, tokenizer in (
            (models.base, models.base_tokenizer),
            (models.thinking, models.thinking_tokenizer),
        )
    ]
    check_gates(ModelPair(*backends, RAW), [Trace("the sum", text) for text in TEXTS], roles, tmp_path)


def test_activations(studied: Studied, tmp_path: Path) -> None:
    traces = [*studied.traces[:6], Trace("Q", "")]
    pairs = {"here": studied.pair, "there": moved(studied.pair, ("thinking",))}
    here, there = (store.collect(tmp_path / name, pair, traces, LAYERS) for name, pair in pairs.items())
    assert torch.equal(here.sentences(), there.sentences())
    for layer in LAYERS:
        for kind in ("onset", "mean"):
            ours, theirs = (each.rows(kind, layer)[:] for each in (here, there))
            assert len(ours) > 5
            assert_close(ours, theirs)


def test_a_store_of_a_local_model_is_not_mixed_with_a_remote_one(studied: Studied, tmp_path: Path) -> None:
    traces = studied.traces[:3]
    store.collect(tmp_path, studied.pair, traces, LAYERS)
    with pytest.raises(HybridError, match="contains shards from different thinking"):
        store.collect(tmp_path, moved(studied.pair, ("thinking",)), traces, LAYERS)


def test_traces(studied: Studied, tmp_path: Path) -> None:
    texts = {}
    for name, pair in (("here", studied.pair), ("there", moved(studied.pair, ("thinking",)))):
        found = sources.generate(tmp_path / name / "traces.jsonl", pair, ["What is 1 + 2?", "And 3?"], 12)
        texts[name] = [trace.text for trace in found]
    assert texts["here"] == texts["there"]
