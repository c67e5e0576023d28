from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers.cache_utils import DynamicCache

from lm_eval_hybrid.discovery.vectors import segments
from lm_eval_hybrid.discovery.vectors.segments import Prefix, PrefixCache
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.naive_steering import backend_of, naive_residual, rows_of_tokens
from tests.tolerances import assert_close

LAYER = 1


def tensors(prefix: Prefix) -> tuple[torch.Tensor, ...]:
    return prefix.residual, *prefix.keys, *prefix.values


def same(one: Prefix, other: Prefix) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@contextmanager
def counted(backend: LocalBackend) -> Iterator[list[int]]:
    """The widths of the model's passes."""
    widths: list[int] = []
    embedding = backend.model._module.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-1]))
    try:
        yield widths
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_a_prefix_has_the_plain_models_activations_of_each_row(family: str) -> None:
    backend, rows = backend_of(family), rows_of_tokens()
    longest = max(map(len, rows))
    prefix = PrefixCache(backend, rows, LAYER).read(range(len(rows)), longest)
    assert len(prefix.keys) == len(prefix.values) == 2
    for row, tokens in enumerate(rows):
        n, cache = len(tokens), DynamicCache()
        with torch.no_grad():
            backend.model._module(input_ids=torch.tensor([tokens]), use_cache=True, **{backend.cache_argument: cache})
        residual = naive_residual(backend.model._module, LAYER, tokens)
        assert_close(prefix.residual[row, :n], residual)
        for i, layer in enumerate(cache.layers[LAYER + 1 :]):
            assert_close(prefix.keys[i][row, :, :n], layer.keys[0])
            assert_close(prefix.values[i][row, :, :n], layer.values[0])
        assert not prefix.residual[row, n:].any()
        assert not any(t[row, :, n:].any() for t in (*prefix.keys, *prefix.values))


def test_kept_and_recomputed_prefixes_have_the_same_bits_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, rows = backend_of("llama"), rows_of_tokens()
    kept = PrefixCache(backend, rows, LAYER)
    monkeypatch.setattr(segments, "CACHE_BYTES", 0)
    computed = PrefixCache(backend, rows, LAYER)
    kept.read([3, 1, 0, 2], 30)
    for some in ([0], [2, 1], [3, 0], [1, 1, 2], [0, 1, 2, 3]):
        columns = max(len(rows[row]) for row in some)
        assert same(kept.read(some, columns), computed.read(some, columns))
        fewer = computed.read(some, 1)
        assert torch.equal(fewer.residual, kept.read(some, columns).residual[:, :1])


def test_kept_prefixes_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("llama")
    rows = [[7] * 10, [8] * 11, [9] * 12, [10] * 10]
    sizes = [PrefixCache(backend, rows, LAYER).read([row], len(rows[row])).nbytes for row in range(4)]
    # A row of 10 tokens, 32 numbers each in the residual and 16 in the keys and values of each of two layers.
    assert sizes[0] == 4 * 10 * (32 + 2 * 2 * 16)
    for room, kept in ((sizes[0] + sizes[1], {0, 1}), (sizes[0] + sizes[3], {0, 3}), (sizes[0] - 1, set())):
        monkeypatch.setattr(segments, "CACHE_BYTES", room)
        cache = PrefixCache(backend, rows, LAYER)
        for row in (0, 1, 2, 3):
            cache.read([row], 10)
        with counted(backend) as widths:
            for row in (0, 1, 2, 3):
                cache.read([row], 10)
        assert widths == [len(rows[row]) for row in range(4) if row not in kept]


def test_a_row_that_is_read_twice_in_a_row_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "CACHE_BYTES", 0)
    backend, rows = backend_of("llama"), rows_of_tokens()
    cache = PrefixCache(backend, rows, LAYER)
    with counted(backend) as widths:
        for some in ([0, 1, 1], [1, 2], [2], [2, 0]):
            cache.read(some, 5)
    assert widths == [len(rows[row]) for row in (0, 1, 2, 0)]


def test_a_prefix_can_be_read_through_nnsight_too() -> None:
    from lm_eval_hybrid.models.local import traced

    backend, rows = backend_of("gemma2"), rows_of_tokens()
    other = LocalBackend(backend.model._module, backend.tokenizer, traced)
    assert same(PrefixCache(backend, rows, LAYER).read([0, 1], 9), PrefixCache(other, rows, LAYER).read([0, 1], 9))


def test_a_kv_cache_of_a_prefix_keeps_nothing_of_a_pass() -> None:
    prefix = PrefixCache(backend_of("llama"), rows_of_tokens(), LAYER).read([0], 4)
    cache = prefix.kv_cache(LAYER + 1)
    assert len(cache.layers) == 4
    new = torch.ones(1, 2, 3, 8)
    for _ in range(2):
        keys, values = cache.layers[2].update(new, 2 * new)
        assert torch.equal(keys, torch.cat([prefix.keys[0], new], 2))
        assert torch.equal(values, torch.cat([prefix.values[0], 2 * new], 2))
