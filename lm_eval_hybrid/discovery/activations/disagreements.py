"""Where the two models disagree in the thinking model's traces: what steering is to bring about there.

At such a place decoding opens its gate. What is kept of it is small, a few numbers, however wide the models are and
however long the traces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import remote
from lm_eval_hybrid.discovery.activations.shards import Shards
from lm_eval_hybrid.discovery.traces.pair import TOP, Encoded, Pair
from lm_eval_hybrid.discovery.traces.traces import Trace, digest
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.models.protocol import ForwardOutput

SCHEMA = 1
LOGITS = 2**28
"""Bytes of float32 logits of a pass, unless those after one token are more."""
NONE = -1


@dataclass(frozen=True)
class Disagreements:
    """Places where the two models' choices differ, in the order of traces, g in all.

    Attributes:
        trace: [g] int64, index of the trace.
        column: [g] int64, the base's last token there, in its row (`pair.Encoded.base`).
        target: [g] int64, the thinking model's choice, as a base token.
        top: [g, TOP] int64, its likeliest tokens as base tokens, NONE where one does not cross.
        top_logprob: [g, TOP] float32, their log-probabilities.
        category: [g] int64, the strongest latent there.
        places: [traces] int64, in how many places of each trace the models were compared.
    """

    trace: Tensor
    column: Tensor
    target: Tensor
    top: Tensor
    top_logprob: Tensor
    category: Tensor
    places: Tensor

    def of(self, traces: Tensor) -> "Disagreements":
        """Those in some traces only, [n] int64; `places` of these traces."""
        wanted = torch.isin(self.trace, traces)
        named = ("trace", "column", "target", "top", "top_logprob", "category")
        return Disagreements(**{name: getattr(self, name)[wanted] for name in named}, places=self.places[traces])

    @property
    def rate(self) -> float:
        """Share of the places compared at which the models differ."""
        return len(self.trace) / max(1, int(self.places.sum()))


def fill(
    folder: Path,
    pair: Pair,
    traces: Sequence[Trace],
    encoder: SparseEncoder,
    layer: int,
    told: str,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> None:
    """Run both models over this process's share of the traces that are missing in `folder`.

    Args:
        encoder: names the category, of the thinking model's residual stream after `layer`.
        told: tells the encoder from others.
    """
    made_of = {"schema": SCHEMA, "traces": digest(traces), "encoder": told, "layer": layer}

    def read(some: range) -> Mapping[str, Tensor]:
        return _read(pair, [pair.encode(traces[i]) for i in some], encoder, layer, some.start)

    Shards(folder, len(traces)).fill(made_of | pair.identity(), read, "gates", ranks.rank, ranks.world)


def load(folder: Path, traces: int) -> Disagreements:
    """What all processes have written there, of so many traces."""
    shards = Shards(folder, traces)
    return Disagreements(**{field.name: shards.tensor(field.name) for field in fields(Disagreements)})


def _read(
    pair: Pair, encoded: Sequence[Encoded], encoder: SparseEncoder, layer: int, first: int
) -> Mapping[str, Tensor]:
    """The tensors of some traces, of which `first` is the first's index."""
    found: dict[int, dict[str, Tensor]] = {}
    widest = max(b.config.get_text_config().vocab_size for b in (pair.base, pair.thinking))
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].thinking))
    for some in in_batches(order, [max(len(e.thinking), len(e.base)) for e in encoded], LOGITS // (4 * widest)):
        those = [encoded[i] for i in some]
        ours = remote.choices(pair, those) if isinstance(pair.base, NdifModel) else _choices(pair, those)
        compare = remote.compare if isinstance(pair.thinking, NdifModel) else _compare
        for i, gates in zip(some, compare(pair, those, ours, encoder, layer), strict=True):
            found[i] = gates | {"trace": torch.full_like(gates["column"], first + i)}
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]) for name in found[0]}


def _compare(
    pair: Pair, encoded: Sequence[Encoded], ours: Sequence[Tensor], encoder: SparseEncoder, layer: int
) -> Iterator[dict[str, Tensor]]:
    """Of each trace, what `Disagreements` has of it.

    Args:
        ours: of each, the base's choice at each of the places that are compared (`Encoded.compared`).
    """
    said = _said(pair, [one.thinking for one in encoded], encoder, layer)
    for row, one in enumerate(encoded):
        first, columns = one.begin - 1, torch.tensor(one.compared, dtype=torch.int64)
        there = {name: tensor[row, first : first + len(columns)] for name, tensor in said.items()}
        where = (~pair.bridge.agree(ours[row], there["choice"])).nonzero()[:, 0]
        yield {
            "column": columns[where],
            "target": pair.bridge.to_base(there["choice"][where]),
            "top": pair.bridge.to_base(there["top"][where]),
            "top_logprob": there["top_logprob"][where],
            "category": there["category"][where],
            "places": torch.tensor([len(columns)]),
        }


def _said(pair: Pair, rows: Sequence[Sequence[int]], encoder: SparseEncoder, layer: int) -> dict[str, Tensor]:
    """What the thinking model says after each token: [rows, n] `choice` and `category`, [rows, n, TOP] `top` (its own
    ids) and `top_logprob`; on the CPU. Beyond a row's end it means nothing."""
    parts = []
    for reading in passes(pair.thinking, rows, layer):
        logits = pair.bridge.thinking_logits(reading.logits)
        top = logits.float().log_softmax(-1).topk(TOP)
        category = encoder.category(reading.residual.cpu().flatten(0, 1)).unflatten(0, logits.shape[:2])
        part = {"choice": logits.argmax(-1), "top": top.indices, "top_logprob": top.values, "category": category}
        parts.append({name: tensor.cpu() for name, tensor in part.items()})
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def _choices(pair: Pair, encoded: Sequence[Encoded]) -> list[Tensor]:
    """Of each trace the base's choice at each of the places that are compared, int64 on the CPU."""
    readings = passes(pair.base, [one.base for one in encoded], len(pair.base.layers) - 1)
    said = torch.cat([pair.bridge.base_logits(reading.logits).argmax(-1).cpu() for reading in readings], 1)
    return [row[one.compared] for row, one in zip(said, encoded, strict=True)]


def passes(backend: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> Iterator[ForwardOutput]:
    """Reads rows of tokens, padded to the longest, some columns at a time, so that their logits stay within LOGITS."""
    room = LOGITS // (4 * backend.config.get_text_config().vocab_size)
    width, step = max(map(len, rows)), max(1, room // len(rows))
    sequences = backend.open(len(rows), layer, reach=None, ahead=0)
    for begin in range(0, width, step):
        parts = [row[begin : begin + step] for row in rows]
        n = min(step, width - begin)
        ids = torch.tensor([[*part, *[0] * (n - len(part))] for part in parts])
        yield sequences.read(ids)


def padded(backend: LocalBackend, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows as input ids and mask, padded on the right, where causal attention never looks."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=backend.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=backend.device)
    return {"input_ids": ids, "attention_mask": mask}


def in_batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in order, as many together as `tokens` holds when padded to the longest of them; at least one."""
    some: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if some and (len(some) + 1) * longest > tokens:
            yield some
            some, longest = [], lengths[index]
        some.append(index)
    if some:
        yield some
