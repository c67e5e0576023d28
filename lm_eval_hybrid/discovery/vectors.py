"""Bias and behavior vectors, by gradient descent on the frozen base at the positions where the two models disagree.

The loss is the cross-entropy of the thinking model's token under the base, steered at that position alone (window 1)
over an unsteered past: what decoding will ask of the vectors. The bias is fitted first, for all positions; then it is
frozen, and one vector for each latent is fitted on top, at the positions where that latent is the strongest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import pydantic
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import DynamicCache

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.behaviors.manifest import Count, Index
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import ReadTrace

MEASURED = 16  # traces read at once when measuring
COPIED = 2**30  # bytes of past and logits at once when measuring, unless one gate alone has more


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class VectorRecipe:
    """How the vectors are fitted.

    Attributes:
        layer: of the base model, after which they are added.
        bias_epochs, epochs: passes over the traces for the bias, and for the vectors.
        rate: Adam's learning rate, for a residual stream of norm 1; it is scaled by the norm found.
        batch: traces in a step.
    """

    layer: Index
    bias_epochs: Index = 2
    epochs: Index = 8
    rate: Annotated[float, Field(gt=0)] = 0.02
    batch: Count = 16


@dataclass(frozen=True)
class Gates:
    """The steered positions of some traces, and what the frozen base keeps of the past there.

    Attributes:
        residual: [g, d_base], unsteered, after the steering layer.
        past: keys and values of each layer, each [traces, heads, n, d_head].
        trace, position: [g] int64.
        category: [g] int64.
        target: [g] int64, the thinking model's token.
    """

    residual: Tensor
    past: tuple[tuple[Tensor, Tensor], ...]
    trace: Tensor
    position: Tensor
    category: Tensor
    target: Tensor

    def parts(self, size: int) -> Iterator["Gates"]:
        """The same gates over the same past, up to `size` at a time."""
        names = ("residual", "trace", "position", "category", "target")
        for pieces in zip(*(getattr(self, name).split(size) for name in names), strict=True):
            yield replace(self, **dict(zip(names, pieces, strict=True)))


def fit(
    base: LocalBackend, encoder: SparseEncoder, traces: Sequence[ReadTrace], recipe: VectorRecipe, seed: int
) -> tuple[Tensor, Tensor]:
    """Fits (bias [d_base], vectors [latents, d_base]), float32 on the CPU. The base's weights stay as they are.

    Some trace must have gates. A step keeps, besides what its gradient needs, a copy of the past and a row of logits
    for each gate of its traces: where memory does not do for that, make `recipe.batch` smaller.
    """
    width = base.config.get_text_config().hidden_size
    scale = _residual_norm(base, encoder, traces, recipe)
    bias = torch.zeros(width, device=base.device, requires_grad=True)
    vectors = torch.zeros(len(encoder.bias), width, device=base.device, requires_grad=True)
    base.model._module.requires_grad_(False)
    order = torch.Generator().manual_seed(seed)

    def run(name: str, parameter: Tensor, epochs: int) -> None:
        steps = epochs * -(-len(traces) // recipe.batch)
        optimizer = torch.optim.Adam([parameter], lr=recipe.rate * scale)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        bar = tqdm(_batches(traces, recipe.batch, epochs, order), total=steps, desc=name)
        for some in bar:
            gates = read_gates(base, encoder, some, recipe.layer)
            steering = bias + vectors[gates.category]
            logits = steered_logits(base, gates, steering, recipe.layer)
            loss = F.cross_entropy(logits, gates.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", hits=f"{_hits(logits, gates):.3f}", refresh=False)

    run("bias", bias, recipe.bias_epochs)
    bias.requires_grad_(False)
    run("vectors", vectors, recipe.epochs)
    return bias.detach().cpu(), vectors.detach().cpu()


def hit_rates(
    base: LocalBackend,
    encoder: SparseEncoder,
    traces: Sequence[ReadTrace],
    layer: int,
    bias: Tensor,
    vectors: Tensor,
) -> dict[str, float]:
    """How often the steered base says the thinking token where they disagree: with the bias alone, with both.

    Some trace must have gates.
    """
    bias, vectors = bias.to(base.device), vectors.to(base.device)
    vocabulary = base.config.get_text_config().vocab_size
    total, hits = 0, {"bias": 0, "vectors": 0}
    for some in _with_gates(traces, MEASURED):
        gates = read_gates(base, encoder, some, layer)
        total += len(gates.target)
        past = sum(kept[0].nbytes for pair in gates.past for kept in pair)
        for part in gates.parts(max(1, COPIED // (past + 4 * vocabulary))):
            for name, steering in (
                ("bias", bias.expand(len(part.target), -1)),
                ("vectors", bias + vectors[part.category]),
            ):
                with torch.no_grad():
                    logits = steered_logits(base, part, steering, layer)
                hits[name] += int((logits.argmax(-1) == part.target).sum())
    return {name: count / total for name, count in hits.items()}


@torch.no_grad()
def read_gates(base: LocalBackend, encoder: SparseEncoder, traces: Sequence[ReadTrace], layer: int) -> Gates:
    """Runs the unsteered base over some traces and keeps what steering at their disagreements needs."""
    width = max(len(trace.ids) for trace in traces)
    ids = torch.stack([F.pad(trace.ids, (0, width - len(trace.ids))) for trace in traces]).to(base.device)
    cache, hook, model = DynamicCache(), base.layers[layer], base.model
    # Padded on the right: no gate looks there.
    with model.trace(input_ids=ids, use_cache=True, logits_to_keep=1, **{base.cache_argument: cache}):
        residual = hook.output.save()
    positions = [trace.gates() for trace in traces]
    owner = torch.cat([torch.full_like(p, i) for i, p in enumerate(positions)]).to(base.device)
    position = torch.cat(positions).to(base.device)
    read = torch.cat([trace.residual[p] for trace, p in zip(traces, positions, strict=True)])
    target = torch.cat([trace.thinking_choice[p] for trace, p in zip(traces, positions, strict=True)])
    return Gates(
        residual=residual[owner, position],
        past=tuple((kept.keys, kept.values) for kept in cache.layers),
        trace=owner,
        position=position,
        category=encoder.category(read).to(base.device),
        target=target.to(base.device),
    )


def steered_logits(base: LocalBackend, gates: Gates, steering: Tensor, layer: int) -> Tensor:
    """Logits [g, vocab] with steering [g, d_base] added at each gate's own position, over an unsteered past.

    Every gate gets its own copy of its trace's past; so the caller bounds the gates.
    """
    cache = DynamicCache()
    length = gates.past[0][0].shape[2]
    for index, (keys, values) in enumerate(gates.past):
        cache.update(keys[gates.trace], values[gates.trace], index)
    # A gate sees the columns before its position, and itself, which stands after all of the past.
    before = torch.arange(length, device=base.device) < gates.position[:, None]
    mask = torch.cat([before, before.new_ones(len(before), 1)], dim=1).long()
    arguments = {
        "input_ids": gates.target[:, None],  # of the right shape; what they embed to is skipped
        "attention_mask": mask,
        "position_ids": gates.position[:, None],
        base.cache_argument: cache,
    }
    steered = (gates.residual + steering)[:, None]
    model, skipped = base.model, base.layers[: layer + 1]
    with model.trace(**arguments, use_cache=True):
        for below in skipped:
            below.skip(steered)
        logits = model.output.logits.save()
    return logits[:, -1].float()


def _batches(
    traces: Sequence[ReadTrace], size: int, epochs: int, order: torch.Generator
) -> Iterator[Sequence[ReadTrace]]:
    for _ in range(epochs):
        shuffled = torch.randperm(len(traces), generator=order).tolist()
        yield from _with_gates([traces[i] for i in shuffled], size)


def _with_gates(traces: Sequence[ReadTrace], size: int) -> Iterator[Sequence[ReadTrace]]:
    """Batches of traces, but for those without a single gate, which have nothing to steer."""
    for first in range(0, len(traces), size):
        some = traces[first : first + size]
        if any(len(trace.gates()) for trace in some):
            yield some


def _residual_norm(
    base: LocalBackend, encoder: SparseEncoder, traces: Sequence[ReadTrace], recipe: VectorRecipe
) -> float:
    some = next(_with_gates(traces, recipe.batch))
    return read_gates(base, encoder, some, recipe.layer).residual.norm(dim=-1).mean().item()


def _hits(logits: Tensor, gates: Gates) -> float:
    return (logits.argmax(-1) == gates.target).float().mean().item()
