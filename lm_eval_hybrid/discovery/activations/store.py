"""Tensors about traces on disk, in shards; and the residual stream at the sentences of traces.

A shard holds a fixed range of traces, so its content depends on these alone: not on which process writes it, nor on
what was there before. It is written atomically, and one that exists is complete; so a run can be interrupted at any
time, and any number of processes can share the work. Memory is bounded by one shard in writing, and by the rows that
are asked for in reading.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.discovery.activations.readers import TraceReader, in_batches, reader_of
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace, digest

SCHEMA = 2
INDEX_FILE = "index.json"
SHARD_TRACES = 64
"""Traces in a shard: the most that an interruption can cost."""
PASS_TOKENS = 8192
"""Tokens of a forward pass, padding included, unless one trace alone has more."""

log = logging.getLogger(__name__)


class ActivationRows(Protocol):
    """Activations [n, d]: a tensor, possibly memory-mapped, or something that reads rows when they are indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The rows of a slice, or of ascending indices [m] int64: [m, d] of some float type."""


class JoinedRows:
    """The rows of several tensors, one after the other, or some of them; implements `ActivationRows`.

    Tensors of safetensors' `safe_open` are maps of their files, so only indexed rows are read, and memory is bounded
    whatever the number of files. No file stays open.

    Args:
        parts: one or more tensors, each [some, d].
        indices: ascending int64 [m], the rows to include; None: all.
    """

    def __init__(self, parts: Sequence[Tensor], indices: Tensor | None = None) -> None:
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts], dtype=torch.int64).cumsum(0)
        self._indices = torch.arange(int(self._ends[-1])) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """A copy of the rows. Raises IndexError for a row that does not exist."""
        chosen = self._indices[rows].contiguous()
        owners, counts = torch.searchsorted(self._ends, chosen, right=True).unique_consecutive(return_counts=True)
        pieces = []
        for part, some in zip(owners.tolist(), chosen.split(counts.tolist()), strict=True):
            first = self._ends[part - 1] if part else 0
            pieces.append(self._parts[part][some - first])
        return torch.cat(pieces) if pieces else self._parts[0][:0].clone()


@dataclass(frozen=True)
class Shards:
    """A folder of shards, complete once `missing` is empty.

    Attributes:
        folder: contains index.json and the shards.
        traces: how many traces the shards cover.
    """

    folder: Path
    traces: int

    @property
    def count(self) -> int:
        """How many shards a complete folder has."""
        return -(-self.traces // SHARD_TRACES)

    def missing(self) -> list[int]:
        """Numbers of the shards that do not exist yet."""
        return [shard for shard in range(self.count) if not self.path(shard).is_file()]

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def fill(
        self,
        made_of: Mapping[str, Any],
        read: Callable[[range], Mapping[str, Tensor]],
        name: str,
        ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
    ) -> None:
        """Write this process's share of the missing shards. All exist once all processes have finished.

        Args:
            made_of: what determines the content of the shards, as plain data.
            read: makes the tensors of a range of traces, by name; the same traces must give the same tensors.
            name: label of the progress bar.

        Raises:
            HybridError: the folder contains shards of something else, or cannot be written.
        """
        self._claim(json.loads(json.dumps({**made_of, "traces_a_shard": SHARD_TRACES})))
        own = [shard for shard in self.missing() if shard % ranks.world == ranks.rank]
        if done := self.count - len(self.missing()):
            log.info("%s: %d of %d shards exist already", self.folder, done, self.count)
        total = sum(len(self._range(shard)) for shard in own)
        with tqdm(total=total, desc=name, unit="trace", disable=not ranks.first or not own) as bar:
            for shard in own:
                traces = self._range(shard)
                tensors = {key: tensor.contiguous() for key, tensor in read(traces).items()}
                try:
                    write_file(self.path(shard), save(tensors))
                except OSError as error:
                    raise HybridError(
                        f"{self.path(shard)}: cannot be written ({error.strerror}); make room and run the same command "
                        "again, which continues from there"
                    ) from None
                bar.update(len(traces))

    def tensor(self, name: str) -> Tensor:
        """A tensor of all traces, joined along the first dimension, in the order of traces.

        Raises:
            HybridError: a shard is missing or damaged.
        """
        return torch.cat(list(self._parts(name)))

    def joined_rows(self, name: str, indices: Tensor | None = None) -> JoinedRows:
        """The rows of `tensor`, or those of ascending `indices` [m] int64, read when they are indexed."""
        return JoinedRows(list(self._parts(name)), indices)

    def _range(self, shard: int) -> range:
        return range(shard * SHARD_TRACES, min((shard + 1) * SHARD_TRACES, self.traces))

    def _parts(self, name: str) -> Iterator[Tensor]:
        if not self.traces:
            raise HybridError(f"{self.folder}: covers no traces; at least one is needed; give some")
        if missing := self.missing():
            raise HybridError(
                f"{self.folder}: {len(missing)} of {self.count} shards are missing; run the same command again, which "
                "continues from there"
            )
        for shard in range(self.count):
            try:
                with safe_open(self.path(shard), framework="pt") as file:
                    yield file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise HybridError(
                    f"{self.path(shard)}: is damaged ({error}); delete it and run the same command again"
                ) from None

    def _claim(self, made_of: dict[str, Any]) -> None:
        """Write the index, or raise HybridError if the folder contains shards of something else, or without index."""
        path = self.folder / INDEX_FILE
        # Checked first: another process may start meanwhile, and writes its index before its shards.
        begun = len(self.missing()) < self.count
        if path.is_file() or begun:
            try:
                index = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                index = None
            if index != made_of:
                known = index if isinstance(index, dict) else {}
                names = [name for name in {**made_of, **known} if known.get(name) != made_of.get(name)]
                raise HybridError(
                    f"{self.folder}: contains shards from different {', '.join(names)}; name another folder, or delete "
                    "this one"
                )
            return
        try:
            write_file(path, json.dumps(made_of, indent=1).encode())
        except OSError as error:
            raise HybridError(f"{self.folder}: cannot be written ({error.strerror}); name a folder that can") from None


class ActivationStore(Shards):
    """Activations at sentences, in shards.

    - `onset`: the residual just before a sentence's first token. There a behavior is chosen, and there decoding asks
      for one. The mean over the sentence, which the paper uses, is dominated by what the sentence says, and latents
      trained on it mislead at the positions where steering asks for them.
    - `mean`: the mean residual over a sentence's tokens.
    """

    def sentences(self) -> Tensor:
        """[sentences, 3] int64: each sentence's trace, and the begin and end of its tokens in the trace's ids."""
        return self.tensor("sentence")

    def rows(self, kind: Literal["onset", "mean"], layer: int, indices: Tensor | None = None) -> JoinedRows:
        """[sentences, d] float32, in the order of traces: of all sentences, or of ascending `indices` [m] int64."""
        return self.joined_rows(f"{kind}.{layer}", indices)


def collect(
    folder: Path,
    pair: ModelPair,
    traces: Sequence[Trace],
    layers: Sequence[int],
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> ActivationStore:
    """Write this process's share of the missing activations. All exist once all processes have finished.

    Args:
        layers: of the thinking model, read in one pass.

    Raises:
        HybridError: the model lacks a layer, or the folder contains activations of other traces, layers or models, or
            cannot be written.
    """
    count = len(pair.thinking.layers)
    if not layers or not all(0 <= layer < count for layer in layers):
        raise HybridError(f"layers {list(layers)} are not all among the thinking model's {count}, from 0; name others")
    store = ActivationStore(folder, len(traces))
    made_of = {"schema": SCHEMA, "traces": digest(traces), "layers": list(layers)} | pair.identity()
    reader = reader_of(pair.thinking)

    def read(shard: range) -> Mapping[str, Tensor]:
        return _read(reader, [pair.encode(traces[i]) for i in shard], layers, shard.start)

    store.fill(made_of, read, "activations", ranks)
    return store


def _read(
    reader: TraceReader, encoded: Sequence[EncodedTrace], layers: Sequence[int], first: int
) -> Mapping[str, Tensor]:
    """The tensors of a shard, whose first trace has the index `first`."""
    found: dict[int, dict[str, Tensor]] = {}
    rows, batches = batched(encoded)
    for batch in batches:
        parts = reader.sentence_residuals([rows[i] for i in batch], [encoded[i].sentences for i in batch], layers)
        for row, i in enumerate(batch):
            spans = [(first + i, s.begin, s.end) for s in encoded[i].sentences]
            found[i] = {"sentence": torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)}
            found[i] |= {name: part[row] for name, part in parts.items()}
    return {name: torch.cat([found[i][name] for i in range(len(encoded))]) for name in found[0]}


def batched(encoded: Sequence[EncodedTrace]) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens to read of each trace, and the traces of each pass, by index."""
    # Tokens after the last sentence, such as the answer, do not change it; but a pass needs a token.
    rows = [one.thinking_ids[: max((s.end for s in one.sentences), default=1)] for one in encoded]
    lengths = [len(row) for row in rows]
    # Rows of similar length share a pass, to waste little on padding.
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    return rows, list(in_batches(order, lengths, PASS_TOKENS))
