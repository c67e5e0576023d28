"""Sizes of batches."""

from types import SimpleNamespace

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.runtime import check_batch_sizes, largest_batch
from tests.oracle.models import tiny_model


@pytest.mark.parametrize("size", [0, -1, "0", "x", "auto:", "automatic", 1.5, True])
def test_sizes_without_meaning_are_refused(size: object) -> None:
    for name in ("batch_size", "max_batch_size"):
        with pytest.raises(HybridError, match=f"{name}=.* is not a batch size"):
            check_batch_sizes({name: size})


def test_sizes() -> None:
    check_batch_sizes({"batch_size": None, "max_batch_size": 64})
    for size in (1, "16", "auto", "auto:4"):
        check_batch_sizes({"batch_size": size})
    with pytest.raises(HybridError):
        check_batch_sizes({"max_batch_size": "auto"})


def test_rows_that_fit_are_what_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_model("llama", 0), tiny_model("gpt2", 0)]
    # Keys and values of four layers in float32: 2 heads of 8 in Llama's, 4 in GPT-2's.
    a_token = 2 * 4 * 4 * (2 * 8 + 4 * 8)
    for free, rows in ((0, 1), (100 * a_token * 10, 7), (10**12, 64)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert largest_batch(models, tokens=100, limit=64) == rows


def test_weights_that_are_fetched_when_needed_count_for_where_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, offloaded = tiny_model("llama", 0), tiny_model("llama", 0)
    offloaded.model.layers[1:].to("meta")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**6))
    assert largest_batch([offloaded], tokens=10, limit=1000) == largest_batch([whole], tokens=10, limit=1000) < 1000
