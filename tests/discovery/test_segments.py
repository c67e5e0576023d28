import pytest
import torch
from torch import Tensor
from torch.nn import Module

from lm_eval_hybrid.discovery.vectors import segments as module
from lm_eval_hybrid.discovery.vectors.pasts import Pasts
from lm_eval_hybrid.discovery.vectors.segments import IGNORED, Pack, Segment, pack, steered_logits
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.steered import backend_of, naively, rows_of_tokens, some_segments, unsteered
from tests.oracle.models import FAMILIES, VOCABULARY
from tests.oracle.naive import blocks_of

# The first layer, the last but one, the last.
CASES = [(f, n) for f in ("llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox") for n in (0, 2, 3)]
CASES += [(family, 1) for family in FAMILIES]


def steering_of(packed: Pack, directions: Tensor) -> Tensor:
    """Of each token one of the directions [segments, longest, d]: so those of one segment differ."""
    column = packed.branches.columns - packed.branches.forks
    return directions[packed.layout.number.clamp(min=0), column.clamp(min=0)]


def directions_of(segments: list[Segment], width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(len(segments), max(len(s.targets) for s in segments), width, generator=generator)


def by_segment(packed: Pack, logits: Tensor) -> dict[int, Tensor]:
    """Of each segment its logits, in the order of its columns."""
    return {n: logits[packed.layout.number == n] for n in packed.layout.number[packed.real].unique().tolist()}


def assert_as_naive(backend: LocalBackend, layer: int, segments: list[Segment], rows: list[list[int]]) -> int:
    """Compares all segments; returns in how many passes they were read."""
    pasts, directions, passes, seen = Pasts(backend, rows, layer), directions_of(segments), 0, []
    for packed in pack(pasts, segments):
        passes += 1
        with torch.no_grad():
            logits = steered_logits(pasts, packed, steering_of(packed, directions))
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        for number, found in by_segment(packed, logits).items():
            segment = segments[number]
            steering = directions[number, : len(segment.targets)]
            with torch.no_grad():
                expected = naively(backend.model._module, layer, rows[segment.row], segment.begin, steering)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
            seen.append(number)
    assert sorted(seen) == list(range(len(segments)))
    return passes


@pytest.mark.parametrize("family, layer", CASES)
def test_logits_are_those_of_the_whole_prefix_steered_at_the_segment_alone(family: str, layer: int) -> None:
    rows = rows_of_tokens()
    assert assert_as_naive(backend_of(family), layer, some_segments(rows), rows) == 1


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "bound, size", [("LOGITS", 1), ("LOGITS", 4 * VOCABULARY * 9), ("SCORES", 300), ("COLUMNS", 30)]
)
def test_small_passes_give_the_same(monkeypatch: pytest.MonkeyPatch, family: str, bound: str, size: int) -> None:
    monkeypatch.setattr(module, bound, size)
    rows = rows_of_tokens()
    assert assert_as_naive(backend_of(family), 1, some_segments(rows), rows) > 3


def test_a_pass_stays_within_its_bounds_unless_one_segment_alone_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, size in (("TOKENS", 12), ("SCORES", 250), ("COLUMNS", 40)):
        monkeypatch.setattr(module, bound, size)
    rows = rows_of_tokens()
    segments = some_segments(rows)
    pasts = Pasts(backend_of("llama"), rows, 1)
    alone = 0
    for packed in pack(pasts, segments):
        m, tokens = packed.layout.target.shape
        columns = packed.past.residual.shape[1]
        single = len(packed.layout.number[packed.real].unique()) == 1
        alone += single
        assert single or (m * tokens <= 12 and m * tokens * (tokens + columns) <= 250)
        assert m == 1 or m * columns <= 40
    assert 0 < alone < len(segments)


def test_packs_are_the_same_each_time_and_say_what_each_token_is() -> None:
    rows = rows_of_tokens()
    segments = some_segments(rows)
    pasts = Pasts(backend_of("llama"), rows, 1)
    (first,), (again,) = (list(pack(pasts, segments)) for _ in range(2))
    assert torch.equal(first.layout.target, again.layout.target) and torch.equal(
        first.layout.number, again.layout.number
    )
    for segment in segments:
        there = first.layout.number == segment.number
        assert first.layout.target[there].tolist() == list(segment.targets)
        assert first.category[there].tolist() == [segment.category] * len(segment.targets)
        assert first.branches.columns[there].tolist() == list(range(segment.begin, segment.end))
        residual = unsteered(pasts.base.model._module, 1, rows[segment.row])[segment.begin : segment.end]
        torch.testing.assert_close(first.residual()[there], residual, rtol=1e-4, atol=1e-4)
    padding = ~first.real
    assert (
        padding.any() and (first.layout.target[padding] == IGNORED).all() and (first.layout.number[padding] == -1).all()
    )


def test_no_segments_make_no_pass() -> None:
    assert list(pack(Pasts(backend_of("llama"), rows_of_tokens(), 1), [])) == []


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_gradients_are_those_of_the_naive_pass_and_leave_the_weights_alone(family: str, layer: int) -> None:
    backend, rows = backend_of(family), rows_of_tokens()
    model = backend.model._module.requires_grad_(False)
    before = [weight.clone() for weight in model.parameters()]
    segments = some_segments(rows)
    weights = torch.randn(len(segments), 30, VOCABULARY, generator=torch.Generator().manual_seed(3))
    ours, theirs = (directions_of(segments).requires_grad_() for _ in range(2))
    pasts = Pasts(backend, rows, layer)
    for packed in pack(pasts, segments):
        logits = steered_logits(pasts, packed, steering_of(packed, ours))
        for number, found in by_segment(packed, logits).items():
            (found.log_softmax(-1) * weights[number, : len(found)]).sum().backward(retain_graph=True)
    for number, segment in enumerate(segments):
        steering = theirs[number, : len(segment.targets)]
        expected = naively(model, layer, rows[segment.row], segment.begin, steering)
        (expected.log_softmax(-1) * weights[number, : len(expected)]).sum().backward()
    assert ours.grad.abs().max() > 1
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_layers_up_to_the_steered_one_are_not_run(family: str) -> None:
    backend, rows = backend_of(family), rows_of_tokens()
    pasts = Pasts(backend, rows, 2)
    (packed,) = pack(pasts, some_segments(rows))
    run: list[int] = []

    def counter(layer: int):  # noqa: ANN202  (a hook)
        return lambda module, inputs: run.append(layer)

    def inner(block: Module) -> Module:
        return next(child for name, child in block.named_children() if "attn" in name or "attention" in name)

    handles = [
        inner(block).register_forward_pre_hook(counter(i)) for i, block in enumerate(blocks_of(backend.model._module))
    ]
    steered_logits(pasts, packed, torch.zeros_like(packed.residual()))
    for handle in handles:
        handle.remove()
    assert run == [3]


def test_steering_a_half_precision_model_gives_float32_logits_and_gradients() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        backend = backend_of("llama")
        backend = LocalBackend(backend.model._module.to(dtype).requires_grad_(False), backend.tokenizer)
        rows = rows_of_tokens()
        segments = some_segments(rows)
        pasts = Pasts(backend, rows, 1)
        (packed,) = pack(pasts, segments)
        directions = directions_of(segments).requires_grad_()
        logits = steered_logits(pasts, packed, steering_of(packed, directions))
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        logits[packed.real].log_softmax(-1).square().mean().backward()
        assert directions.grad.dtype == torch.float32 and directions.grad.isfinite().all() and directions.grad.any()
