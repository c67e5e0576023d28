"""Sentences' activations on disk: written a shard at a time by any number of processes, resumed after any end.

A shard holds a fixed run of traces, so that what is in it depends on nothing but them: not on who writes it, nor on
what was there before. It appears whole (renamed) or not at all; one that is there is done. Memory is bounded by a
shard, and, in reading, by one layer's activations.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnsight
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.behaviors.files import write_file
from lm_eval_hybrid.discovery.activations import encode
from lm_eval_hybrid.discovery.traces import Trace, digest, fingerprint
from lm_eval_hybrid.errors import HybridError

SCHEMA = 1
INDEX_FILE = "index.json"
TRACES = 64
"""Traces of a shard: what an end at the worst moment costs."""

TOKENS = 8192
"""Tokens of a forward pass, padding included, unless one trace alone has more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A folder of shards, complete once `missing` is empty.

    Attributes:
        folder: where index.json and the shards are.
        layers: of the model, after which residuals were read.
        shards: how many there are when all is done.
    """

    folder: Path
    layers: tuple[int, ...]
    shards: int

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(self.shards) if not self.path(shard).is_file()]

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def onsets(self, layer: int) -> Tensor:
        """[sentences, d] float32, in the order of traces: the residual just before each sentence's first token.

        That is where a behavior is chosen and where decoding asks for one. The mean over the whole sentence, which
        the paper takes, is dominated by what is said, and its latents mislead at the positions that steering asks for.
        """
        return self._joined(f"onset.{layer}")

    def means(self, layer: int) -> Tensor:
        """[sentences, d] float32, in the order of traces: the residual's mean over each sentence's tokens."""
        return self._joined(f"mean.{layer}")

    def sentences(self) -> Tensor:
        """[sentences, 3] int64: of each sentence its trace, and where its tokens begin and end in the trace's ids."""
        return self._joined("sentence")

    def _joined(self, name: str) -> Tensor:
        return torch.cat(list(self._parts(name)))

    def _parts(self, name: str) -> Iterator[Tensor]:
        if missing := self.missing():
            raise HybridError(
                f"{self.folder}: activations must be complete to be used; found {len(missing)} of {self.shards} shards "
                "missing; run the same command again, it goes on from there"
            )
        for shard in range(self.shards):
            try:
                with safe_open(self.path(shard), framework="pt") as file:
                    yield file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise HybridError(
                    f"{self.path(shard)}: must be a shard that was written whole; found {error}; delete it and run "
                    "the same command again"
                ) from None


def collect(
    folder: Path, backend: LocalBackend, traces: Sequence[Trace], layers: Sequence[int], rank: int = 0, world: int = 1
) -> Store:
    """Write this process's share of the shards that are missing.

    Args:
        layers: of the model, all read in one pass.
        rank, world: of this process, and how many there are; the store is complete when all have ended.

    Raises:
        HybridError: where the folder holds activations of other traces, layers or weights, or cannot be written.
    """
    shards = -(-len(traces) // TRACES)
    store = Store(folder, tuple(layers), shards)
    _claim(store, _made_of(backend, traces, layers))
    mine = [shard for shard in store.missing() if shard % world == rank]
    done = shards - len(store.missing())
    if done:
        log.info("%s: %d of %d shards are there already", folder, done, shards)
    with tqdm(total=len(mine), desc="activations", unit="shard", disable=rank != 0) as bar:
        for shard in mine:
            first = shard * TRACES
            tensors = _read(backend, traces[first : first + TRACES], store.layers, first)
            try:
                write_file(store.path(shard), save(tensors))
            except OSError as error:
                raise HybridError(
                    f"{store.path(shard)}: activations need room to be written; found {error.strerror}; make some and "
                    "run the same command again, it goes on from there"
                ) from None
            bar.update()
    return store


def _made_of(backend: LocalBackend, traces: Sequence[Trace], layers: Sequence[int]) -> dict[str, Any]:
    vocabulary = json.dumps(sorted(backend.tokenizer.get_vocab().items()))
    return {
        "schema": SCHEMA,
        "traces": digest(traces),
        "layers": list(layers),
        "weights": fingerprint(backend),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "traces_a_shard": TRACES,
    }


def _claim(store: Store, made_of: dict[str, Any]) -> None:
    """Say in the folder what its shards are of; HybridError where they are of something else."""
    path = store.folder / INDEX_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if found != made_of:
            names = [name for name in made_of if not isinstance(found, dict) or found.get(name) != made_of[name]]
            raise HybridError(
                f"{store.folder}: must be empty, or hold activations of the same {', '.join(names)}; found others; "
                "name another folder, or delete it"
            )
        return
    try:
        write_file(path, json.dumps(made_of, indent=1).encode())
    except OSError as error:
        raise HybridError(
            f"{store.folder}: must be a folder to write to; found {error.strerror}; name another"
        ) from None


def _read(backend: LocalBackend, traces: Sequence[Trace], layers: Sequence[int], first: int) -> dict[str, Tensor]:
    """A shard: the tensors of its traces' sentences, in order."""
    encoded = [encode(trace, backend) for trace in traces]
    found: dict[int, dict[str, Tensor]] = {}
    # Of like length together: what is padded is computed for nothing.
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    for some in _batches(order, [len(one.ids) for one in encoded]):
        residuals = _residuals(backend, [encoded[i].ids for i in some], layers)
        for row, i in enumerate(some):
            spans = torch.tensor([(s.begin, s.end) for s in encoded[i].sentences], dtype=torch.int64).reshape(-1, 2)
            found[i] = {"sentence": torch.cat([torch.full((len(spans), 1), first + i), spans], 1)}
            for layer, residual in zip(layers, residuals, strict=True):
                found[i] |= _sentence_rows(layer, residual[row], spans)
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]).contiguous() for name in found[0]}


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
    width = max(map(len, rows))
    # Padded on the right, where causal attention never looks.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=backend.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=backend.device)
    model, hooks = backend.model, [backend.layers[layer] for layer in sorted(layers)]
    with model.trace(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1) as tracer:
        saved = nnsight.save([hook.output for hook in hooks])
        tracer.stop()
    by_layer = dict(zip(sorted(layers), saved, strict=True))
    return [by_layer[layer] for layer in layers]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in order, as many together as TOKENS holds when padded to the longest, which comes last."""
    some: list[int] = []
    for index in order:
        if some and (len(some) + 1) * lengths[index] > TOKENS:
            yield some
            some = []
        some.append(index)
    if some:
        yield some
