"""The residual stream at the sentences of the thinking model's traces, at several layers in one pass, on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nnsight
import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.activations import remote
from lm_eval_hybrid.discovery.activations.disagreements import in_batches, padded
from lm_eval_hybrid.discovery.activations.rows import Rows
from lm_eval_hybrid.discovery.activations.shards import Shards
from lm_eval_hybrid.discovery.traces.pair import Encoded, Pair
from lm_eval_hybrid.discovery.traces.sentences import Sentence
from lm_eval_hybrid.discovery.traces.traces import Trace, digest
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.model import NdifModel

SCHEMA = 2
TOKENS = 8192
"""Tokens of a forward pass, padding included, unless one trace alone has more."""


@dataclass(frozen=True)
class Store:
    """A folder of sentences' activations.

    - `onset`: the residual just before a sentence's first token. That is where a behavior is chosen and where decoding
      asks for one. The mean over the whole sentence, which the paper takes, is dominated by what is said, and its
      latents mislead at the positions that steering asks for.
    - `mean`: the residual's mean over a sentence's tokens.
    """

    shards: Shards

    def sentences(self) -> Tensor:
        """[sentences, 3] int64: of each sentence its trace, and where its tokens begin and end in the trace's ids."""
        return self.shards.tensor("sentence")

    def rows(self, kind: Literal["onset", "mean"], layer: int, indices: Tensor | None = None) -> Rows:
        """[sentences, d] float32, in the order of traces, read only when they are asked for.

        Args:
            indices: ascending int64 [m]: the sentences that are rows; all, where there are none.

        Raises:
            HybridError: where a shard is missing or was not written whole.
        """
        return self.shards.rows(f"{kind}.{layer}", indices)


def collect(
    folder: Path,
    pair: Pair,
    traces: Sequence[Trace],
    layers: Sequence[int],
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> Store:
    """Write this process's share of the activations that are missing; they are complete when all processes have.

    Args:
        layers: of the thinking model, all read in one pass.

    Raises:
        HybridError: where the model has no such layers, or the folder holds activations of other traces, layers or
            models, or cannot be written.
    """
    count = len(pair.thinking.layers)
    if not layers or not all(0 <= layer < count for layer in layers):
        raise HybridError(
            f"layers must be among the thinking model's {count}, from 0; found {list(layers)}; name others"
        )
    shards = Shards(folder, len(traces))
    made_of = {"schema": SCHEMA, "traces": digest(traces), "layers": list(layers)} | pair.identity()

    def read(some: range) -> Mapping[str, Tensor]:
        return _read(pair.thinking, [pair.encode(traces[i]) for i in some], layers, some.start)

    shards.fill(made_of, read, "activations", ranks.rank, ranks.world)
    return Store(shards)


def _read(
    backend: LocalBackend | NdifModel, encoded: Sequence[Encoded], layers: Sequence[int], first: int
) -> Mapping[str, Tensor]:
    """A shard: the tensors of its traces' sentences, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    rows, batches = batched(encoded)
    for some in batches:
        read = remote.at_sentences if isinstance(backend, NdifModel) else at_sentences
        parts = read(backend, [rows[i] for i in some], [encoded[i].sentences for i in some], layers)
        for row, i in enumerate(some):
            spans = [(first + i, s.begin, s.end) for s in encoded[i].sentences]
            found[i] = {"sentence": torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)}
            found[i] |= {name: part[row] for name, part in parts.items()}
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]) for name in found[0]}


def batched(encoded: Sequence[Encoded]) -> tuple[list[list[int]], list[list[int]]]:
    """What is read of some traces, and which of them together."""
    # What follows the last sentence, as an answer does, changes none; but a pass needs a token.
    rows = [one.thinking[: max((s.end for s in one.sentences), default=1)] for one in encoded]
    lengths = [len(row) for row in rows]
    # Of like length together: what is padded is computed for nothing.
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    return rows, list(in_batches(order, lengths, TOKENS))


def at_sentences(
    backend: LocalBackend, rows: Sequence[Sequence[int]], sentences: Sequence[Sequence[Sentence]], layers: Sequence[int]
) -> dict[str, tuple[Tensor, ...]]:
    """What is kept of some rows, read in one pass, by name: each row's by itself."""
    residuals = _residuals(backend, rows, layers)
    return _sentence_rows(dict(zip(layers, residuals, strict=True)), sentences)


def _sentence_rows(
    residuals: Mapping[int, Tensor], sentences: Sequence[Sequence[Sentence]]
) -> dict[str, tuple[Tensor, ...]]:
    """At sentences' onsets, and means over sentences.

    Args:
        residuals: [rows, width, d], by layer.
        sentences: of each row.
    """
    width = next(iter(residuals.values())).shape[1]
    found = [(row * width + s.begin, s.end - s.begin) for row, some in enumerate(sentences) for s in some]
    begins, lengths = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    # All sentences' tokens, one after the other: one reduction for a whole pass.
    tokens = (begins - lengths.cumsum(0) + lengths).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
    counts = [len(some) for some in sentences]
    kept: dict[str, tuple[Tensor, ...]] = {}
    for layer, residual in residuals.items():
        rows, there = residual.flatten(0, 1), residual.device
        onsets = rows[(begins - 1).to(there)].float()
        # `unsafe` leaves out checks of the lengths, which fail where there are none.
        means = torch.segment_reduce(
            rows[tokens.to(there)].float(), "mean", lengths=lengths.to(there), axis=0, unsafe=True
        )
        kept[f"onset.{layer}"], kept[f"mean.{layer}"] = (part.cpu().split(counts) for part in (onsets, means))
    return kept


@torch.no_grad()
def _residuals(backend: LocalBackend, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[Tensor]:
    """The residual stream after each layer, [rows, width, d], in one pass that goes no higher than it must."""
    arguments = padded(backend, rows)
    model, hooks = backend.model, [backend.layers[layer] for layer in sorted(layers)]
    with model.trace(**arguments, use_cache=False, logits_to_keep=1) as tracer:
        saved = nnsight.save([hook.output for hook in hooks])
        tracer.stop()
    by_layer = dict(zip(sorted(layers), saved, strict=True))
    return [by_layer[layer] for layer in layers]
