"""The residual stream at the sentences of the thinking model's traces, at several layers in one pass, on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nnsight
import torch
from torch import Tensor

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery.gates import in_batches, padded
from lm_eval_hybrid.discovery.pair import Encoded, Pair
from lm_eval_hybrid.discovery.ranks import Ranks
from lm_eval_hybrid.discovery.sae import Rows
from lm_eval_hybrid.discovery.shards import Shards
from lm_eval_hybrid.discovery.traces import Trace, digest
from lm_eval_hybrid.errors import HybridError

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


def _read(backend: LocalBackend, encoded: Sequence[Encoded], layers: Sequence[int], first: int) -> Mapping[str, Tensor]:
    """A shard: the tensors of its traces' sentences, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    # What follows the last sentence, as an answer does, changes none; but a pass needs a token.
    rows = [one.thinking[: max((s.end for s in one.sentences), default=1)] for one in encoded]
    lengths = [len(row) for row in rows]
    # Of like length together: what is padded is computed for nothing.
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for some in in_batches(order, lengths, TOKENS):
        residuals = _residuals(backend, [rows[i] for i in some], layers)
        for row, i in enumerate(some):
            spans = torch.tensor([(s.begin, s.end) for s in encoded[i].sentences], dtype=torch.int64).reshape(-1, 2)
            found[i] = {"sentence": torch.cat([torch.full((len(spans), 1), first + i), spans], 1)}
            for layer, residual in zip(layers, residuals, strict=True):
                found[i] |= _sentence_rows(layer, residual[row], spans)
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]) for name in found[0]}


def _sentence_rows(layer: int, residual: Tensor, spans: Tensor) -> dict[str, Tensor]:
    """Of one trace [n, d] the rows that are kept: at sentences' onsets, and means over sentences."""
    begins, ends = spans.to(residual.device).T
    onsets = residual[begins - 1]
    # A sum up to every token; in float64, as it is a difference of two that is used.
    sums = torch.cat([residual.new_zeros(1, residual.shape[1]).double(), residual.double().cumsum(0)])
    means = (sums[ends] - sums[begins]) / (ends - begins)[:, None]
    return {f"onset.{layer}": onsets.float().cpu(), f"mean.{layer}": means.float().cpu()}


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
