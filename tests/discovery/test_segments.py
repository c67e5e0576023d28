import pytest
import torch
from torch import Tensor
from torch.nn import Module

from lm_eval_hybrid.discovery.vectors import segments as module
from lm_eval_hybrid.discovery.vectors.segments import PADDING, Segment
from lm_eval_hybrid.discovery.vectors.steered_model import LocalBatch, LocalSteeredModel
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.naive_steering import backend_of, naive_logits, naive_residual, rows_of_tokens, some_segments
from tests.oracle.models import FAMILIES, VOCABULARY
from tests.oracle.naive import blocks_of
from tests.tolerances import LAYERS, assert_close

# The first layer, the last but one, the last.
CASES = [(f, n) for f in ("llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox") for n in (0, 2, 3)]
CASES += [(family, 1) for family in FAMILIES]


def steering_of(batch: LocalBatch, directions: Tensor) -> Tensor:
    """The steering [m, T, d]: a different vector of `directions` [segments, longest, d] at each token of a segment."""
    column = batch.columns - batch.forks
    return directions[batch.segments.index.clamp(min=0), column.clamp(min=0)]


def directions_of(segments: list[Segment], width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(len(segments), max(len(s.targets) for s in segments), width, generator=generator)


def by_segment(batch: LocalBatch, logits: Tensor) -> dict[int, Tensor]:
    """The logits of each segment, in the order of its columns."""
    return {n: logits[batch.segments.index == n] for n in batch.segments.index[batch.real].unique().tolist()}


def assert_as_naive(backend: LocalBackend, layer: int, segments: list[Segment], rows: list[list[int]]) -> int:
    """Compare all segments with naive passes. Returns the number of batches."""
    model, directions, passes, seen = LocalSteeredModel(backend, rows, layer), directions_of(segments), 0, []
    for batch in model.batches(segments):
        passes += 1
        with torch.no_grad():
            logits = model.logits(batch, steering_of(batch, directions))
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        for index, found in by_segment(batch, logits).items():
            segment = segments[index]
            steering = directions[index, : len(segment.targets)]
            with torch.no_grad():
                expected = naive_logits(backend.model._module, layer, rows[segment.row], segment.begin, steering)
            assert_close(found, expected)
            seen.append(index)
    assert sorted(seen) == list(range(len(segments)))
    return passes


@pytest.mark.parametrize("family, layer", CASES)
def test_logits_are_those_of_a_naive_pass_that_is_steered_at_the_segment_only(family: str, layer: int) -> None:
    rows = rows_of_tokens()
    assert assert_as_naive(backend_of(family), layer, some_segments(rows), rows) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "bound, size", [("LOGIT_BYTES", 1), ("LOGIT_BYTES", 4 * VOCABULARY * 9), ("SCORES", 300), ("COLUMNS", 30)]
)
def test_small_batches_give_the_same_logits(
    monkeypatch: pytest.MonkeyPatch, family: str, bound: str, size: int
) -> None:
    monkeypatch.setattr(module, bound, size)
    rows = rows_of_tokens()
    assert assert_as_naive(backend_of(family), 1, some_segments(rows), rows) > 3


def test_only_a_batch_of_one_segment_exceeds_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, size in (("TOKENS", 12), ("SCORES", 250), ("COLUMNS", 40)):
        monkeypatch.setattr(module, bound, size)
    rows = rows_of_tokens()
    segments = some_segments(rows)
    model = LocalSteeredModel(backend_of("llama"), rows, 1)
    alone = 0
    for batch in model.batches(segments):
        m, tokens = batch.segments.target.shape
        columns = batch.prefix.residual.shape[1]
        single = len(batch.segments.index[batch.real].unique()) == 1
        alone += single
        assert single or (m * tokens <= 12 and m * tokens * (tokens + columns) <= 250)
        assert m == 1 or m * columns <= 40
    assert 0 < alone < len(segments)


def test_batches_are_deterministic_and_describe_each_token() -> None:
    rows = rows_of_tokens()
    segments = some_segments(rows)
    model = LocalSteeredModel(backend_of("llama"), rows, 1)
    (first,), (again,) = (list(model.batches(segments)) for _ in range(2))
    assert torch.equal(first.segments.target, again.segments.target) and torch.equal(
        first.segments.index, again.segments.index
    )
    for segment in segments:
        there = first.segments.index == segment.index
        assert first.segments.target[there].tolist() == list(segment.targets)
        assert first.category[there].tolist() == [segment.category] * len(segment.targets)
        assert first.columns[there].tolist() == list(range(segment.begin, segment.end))
        residual = naive_residual(model.prefixes.base.model._module, 1, rows[segment.row])[segment.begin : segment.end]
        assert_close(first.residual()[there], residual)
    padding = ~first.real
    assert (
        padding.any()
        and (first.segments.target[padding] == PADDING).all()
        and (first.segments.index[padding] == PADDING).all()
    )


def test_no_segments_make_no_batch() -> None:
    assert list(LocalSteeredModel(backend_of("llama"), rows_of_tokens(), 1).batches([])) == []


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_gradients_are_those_of_the_naive_pass_and_weights_get_none(family: str, layer: int) -> None:
    backend, rows = backend_of(family), rows_of_tokens()
    plain = backend.model._module
    before = [weight.clone() for weight in plain.parameters()]
    segments = some_segments(rows)
    weights = torch.randn(len(segments), 30, VOCABULARY, generator=torch.Generator().manual_seed(3))
    ours, theirs = (directions_of(segments).requires_grad_() for _ in range(2))
    model = LocalSteeredModel(backend, rows, layer)
    for batch in model.batches(segments):
        logits = model.logits(batch, steering_of(batch, ours))
        for index, found in by_segment(batch, logits).items():
            (found.log_softmax(-1) * weights[index, : len(found)]).sum().backward(retain_graph=True)
    for index, segment in enumerate(segments):
        steering = theirs[index, : len(segment.targets)]
        expected = naive_logits(plain, layer, rows[segment.row], segment.begin, steering)
        (expected.log_softmax(-1) * weights[index, : len(expected)]).sum().backward()
    assert ours.grad.abs().max() > 1
    assert_close(ours.grad, theirs.grad, 2 * LAYERS, terms=ours.grad.shape[1])
    assert all(weight.grad is None for weight in plain.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_layers_up_to_the_steering_layer_do_not_run(family: str) -> None:
    backend, rows = backend_of(family), rows_of_tokens()
    model = LocalSteeredModel(backend, rows, 2)
    (batch,) = model.batches(some_segments(rows))
    run: list[int] = []

    def counter(layer: int):  # noqa: ANN202  (a hook)
        return lambda module, inputs: run.append(layer)

    def inner(block: Module) -> Module:
        return next(child for name, child in block.named_children() if "attn" in name or "attention" in name)

    handles = [
        inner(block).register_forward_pre_hook(counter(i)) for i, block in enumerate(blocks_of(backend.model._module))
    ]
    model.logits(batch, torch.zeros_like(batch.residual()))
    for handle in handles:
        handle.remove()
    assert run == [3]


def test_a_half_precision_model_gives_float32_logits_and_gradients() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        backend = backend_of("llama")
        backend = LocalBackend(backend.model._module.to(dtype).requires_grad_(False), backend.tokenizer)
        rows = rows_of_tokens()
        segments = some_segments(rows)
        model = LocalSteeredModel(backend, rows, 1)
        (batch,) = model.batches(segments)
        directions = directions_of(segments).requires_grad_()
        logits = model.logits(batch, steering_of(batch, directions))
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        logits[batch.real].log_softmax(-1).square().mean().backward()
        assert directions.grad.dtype == torch.float32 and directions.grad.isfinite().all() and directions.grad.any()
