"""Positions in the thinking model's traces where the two models disagree: where decoding opens its gate.

A disagreement takes a few numbers, whatever the size of the models and the length of the traces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import readers
from lm_eval_hybrid.discovery.activations.store import Shards
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace, digest

SCHEMA = 1
NONE = -1


@dataclass(frozen=True)
class Disagreements:
    """The g positions at which the models' choices differ, in the order of traces.

    Attributes:
        trace: [g] int64, index of the trace.
        column: [g] int64, index of the position in the base's row (`EncodedTrace.base_ids`).
        target: [g] int64, the thinking model's choice, as a base token.
        top: [g, TOP] int64, its likeliest tokens, as base tokens; NONE for one that the base does not have.
        top_logprob: [g, TOP] float32, their log-probabilities.
        category: [g] int64, the strongest latent.
        places: [traces] int64, how many positions of each trace were compared.
    """

    trace: Tensor
    column: Tensor
    target: Tensor
    top: Tensor
    top_logprob: Tensor
    category: Tensor
    places: Tensor

    def of(self, traces: Tensor) -> "Disagreements":
        """The disagreements in some traces, [n] int64; `places` then has n elements."""
        chosen = torch.isin(self.trace, traces)
        names = ("trace", "column", "target", "top", "top_logprob", "category")
        return Disagreements(**{name: getattr(self, name)[chosen] for name in names}, places=self.places[traces])

    @property
    def rate(self) -> float:
        """Share of the compared positions at which the models disagree."""
        return len(self.trace) / max(1, int(self.places.sum()))


def fill(
    folder: Path,
    pair: ModelPair,
    traces: Sequence[Trace],
    encoder: SparseEncoder,
    layer: int,
    encoder_id: str,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> None:
    """Run both models over this process's share of the traces that are missing in `folder`.

    Args:
        encoder: gives the category, of the thinking model's residual after `layer`.
        encoder_id: identifies the encoder.

    Raises:
        HybridError: the folder contains disagreements of other traces, models or encoders, or cannot be written.
    """
    made_of = {"schema": SCHEMA, "traces": digest(traces), "encoder": encoder_id, "layer": layer}

    def read(shard: range) -> Mapping[str, Tensor]:
        return _read(pair, [pair.encode(traces[i]) for i in shard], encoder, layer, shard.start)

    Shards(folder, len(traces)).fill(made_of | pair.identity(), read, "disagreements", ranks)


def load(folder: Path, traces: int) -> Disagreements:
    """Read what all processes have written about that many traces.

    Raises:
        HybridError: a shard is missing or damaged.
    """
    shards = Shards(folder, traces)
    return Disagreements(**{field.name: shards.tensor(field.name) for field in fields(Disagreements)})


def _read(
    pair: ModelPair, encoded: Sequence[EncodedTrace], encoder: SparseEncoder, layer: int, first: int
) -> Mapping[str, Tensor]:
    """The tensors of a shard, whose first trace has the index `first`."""
    base, thinking = readers.reader_of(pair.base), readers.reader_of(pair.thinking)
    vocabulary = max(model.config.get_text_config().vocab_size for model in (pair.base, pair.thinking))
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].thinking_ids))
    lengths = [max(len(one.thinking_ids), len(one.base_ids)) for one in encoded]
    found: dict[int, dict[str, Tensor]] = {}
    for batch in readers.in_batches(order, lengths, readers.LOGIT_BYTES // (4 * vocabulary)):
        some = [encoded[i] for i in batch]
        choices = thinking.thinking_choices(some, pair.bridge, base.base_choices(some, pair.bridge), encoder, layer)
        for i, chosen in zip(batch, choices, strict=True):
            columns = torch.tensor(encoded[i].compared_columns, dtype=torch.int64)
            found[i] = {
                "trace": torch.full_like(chosen.steps, first + i),
                "column": columns[chosen.steps],
                "target": pair.bridge.to_base(chosen.choice),
                "top": pair.bridge.to_base(chosen.top),
                "top_logprob": chosen.top_logprob,
                "category": chosen.category,
                "places": torch.tensor([len(columns)]),
            }
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]) for name in found[0]}
