"""Single forward passes through the backend, against the same in plain PyTorch, on a model that nnsight never saw.

- `step`: one cached token, unsteered, the residual read by a hook; `traced`: the same through nnsight.
- `candidates`: the layers above the steering alone, over all candidates of one place side by side in one row, kept
  apart by a mask.
- `window`: candidates steered at all positions; plain is the whole model over the whole text, as without the backend.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from benchmarks.clock import Ratio, take_turns
from benchmarks.plain import cache_argument, hooked
from lm_eval_hybrid.models.local import LocalBackend, LocalSequences, traced

PASSES = "step", "traced", "candidates", "window"


def compare(
    plain: PreTrainedModel, backend: LocalBackend, text: Sequence[int], layer: int, steering: Tensor, rounds: int
) -> tuple[dict[str, Ratio], dict[str, list[float]]]:
    """Backend's time over plain time (of `window`: plain time over the backend's), and all seconds.

    Args:
        plain, backend: of one model.
        text: token ids; the passes read the last of them.
        steering: [C, d], float32, on the model's device.
        rounds: in each of which a short pass is run ten times, and `window` once.

    Raises:
        SystemExit: where the two sides say something else.
    """
    ours, theirs = _backend_passes(backend, text, layer, steering), _plain_passes(plain, text, layer, steering)
    seconds: dict[str, list[float]] = {}
    for name in PASSES:
        work = {f"{name}, plain": theirs[name], f"{name}, backend": ours[name]}
        _, said = take_turns(work, 1)  # what happens once is not what is compared
        first, second = (t.float() for t in said.values())
        if plain.dtype == torch.float32 and not torch.allclose(first, second, atol=1e-2, rtol=1e-3):
            raise SystemExit(f"{name}: backend and plain PyTorch differ by {float((first - second).abs().max())}")
        if name != "window":
            work = {side: partial(_ten_times, once) for side, once in work.items()}
        seconds |= take_turns(work, rounds)[0]
    ratios = {name: Ratio.of(seconds[f"{name}, backend"], seconds[f"{name}, plain"]) for name in PASSES[:-1]}
    return ratios | {"window": Ratio.of(seconds["window, plain"], seconds["window, backend"])}, seconds


def _ten_times(once: Callable[[], Tensor]) -> None:
    for _ in range(10):
        once()


def _backend_passes(
    backend: LocalBackend, text: Sequence[int], layer: int, steering: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Logits of each pass."""
    near, far = (backend.open(1, layer, reach, 1) for reach in (1, 0))
    through = LocalBackend(backend.model._module, backend.tokenizer, traced).open(1, layer, 1, 1)
    for sequences in (near, through):
        sequences.insert([0], [text[:-1]])
    far.insert([0], [text])
    last, place, count = torch.tensor([[text[-1]]]), len(text) - 1, len(steering)

    def step(sequences: LocalSequences) -> Tensor:
        sequences.rewind([place])
        return sequences.read(last).logits[0]

    return {
        "step": partial(step, near),
        "traced": partial(step, through),
        "candidates": lambda: near.steered([0], [place], steering[None], [1] * count)[0],
        "window": lambda: far.steered([0], [place], steering[None], [0] * count)[0],
    }


def _plain_passes(
    model: PreTrainedModel, text: Sequence[int], layer: int, steering: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Logits of each pass."""
    argument, past, count = cache_argument(model), len(text) - 1, len(steering)
    ids = torch.tensor([list(text)], device=model.device)
    cache = DynamicCache()
    seen: list[Tensor] = []
    with torch.no_grad(), hooked(model.model.layers[layer], seen.append):
        model(ids[:, :-1], **{argument: cache}, use_cache=True, logits_to_keep=1)
    # A candidate sees the past and itself.
    apart = torch.full((count, count), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
    mask = torch.cat([apart.new_zeros(count, past), apart.fill_diagonal_(0)], 1)[None, None]
    positions = torch.full((1, count), past, device=model.device)

    @torch.no_grad()
    def step() -> Tensor:
        with hooked(model.model.layers[layer], lambda residual: seen.__setitem__(0, residual)):
            logits = model(ids[:, -1:], position_ids=positions[:, :1], **{argument: cache}, use_cache=True).logits
        cache.crop(-1)
        return logits[0]

    @torch.no_grad()
    def candidates() -> Tensor:
        inputs = {"inputs_embeds": seen[0] + steering[None].to(seen[0]), "position_ids": positions}
        with _layers_above(model, layer):
            logits = model(**inputs, attention_mask=mask, **{argument: cache}, use_cache=True).logits
        for kept in cache.layers[layer + 1 :]:
            kept.crop(-count)
        return logits[0]

    @torch.no_grad()
    def window() -> Tensor:
        added = steering[:, None]
        with hooked(model.model.layers[layer], lambda residual: residual + added.to(residual)):
            return model(ids.expand(count, -1), use_cache=False, logits_to_keep=1).logits[:, 0]

    return {"step": step, "traced": step, "candidates": candidates, "window": window}


@contextmanager
def _layers_above(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """While inside, the model begins after `layer`."""
    layers = model.model.layers
    model.model.layers = layers[layer + 1 :]
    try:
        yield
    finally:
        model.model.layers = layers
