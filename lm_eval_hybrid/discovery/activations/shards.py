"""A folder of tensors about traces, written a shard at a time by any number of processes, resumed after any end.

A shard holds a fixed run of traces, so that what is in it depends on nothing but them: not on who writes it, nor on
what was there before. It appears whole (renamed) or not at all; one that is there is done. So memory is bounded by a
shard in writing, and in reading by what is asked for.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.discovery.activations.rows import JoinedRows, Rows

INDEX_FILE = "index.json"
TRACES = 64
"""Traces of a shard: what an end at the worst moment costs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """A folder of shards, complete once `missing` is empty.

    Attributes:
        folder: where index.json and the shards are.
        traces: how many traces they are of.
    """

    folder: Path
    traces: int

    @property
    def count(self) -> int:
        """How many shards there are when all is done."""
        return -(-self.traces // TRACES)

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(self.count) if not self.path(shard).is_file()]

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def fill(
        self,
        made_of: Mapping[str, Any],
        read: Callable[[range], Mapping[str, Tensor]],
        name: str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Write this process's share of the shards that are missing.

        Args:
            made_of: what decides the shards' content, as JSON can hold it.
            read: the tensors of a run of traces, by name; the same traces give the same.
            name: of the work, for its progress bar.
            rank, world: of this process, and how many there are; all is there when all have ended.

        Raises:
            HybridError: where the folder holds shards of something else, or cannot be written.
        """
        self._claim(json.loads(json.dumps({**made_of, "traces_a_shard": TRACES})))
        mine = [shard for shard in self.missing() if shard % world == rank]
        done = self.count - len(self.missing())
        if done:
            log.info("%s: %d of %d shards are there already", self.folder, done, self.count)
        total = sum(len(self._range(shard)) for shard in mine)
        with tqdm(total=total, desc=name, unit="trace", disable=rank != 0 or not mine) as bar:
            for shard in mine:
                some = self._range(shard)
                tensors = {key: tensor.contiguous() for key, tensor in read(some).items()}
                try:
                    write_file(self.path(shard), save(tensors))
                except OSError as error:
                    raise HybridError(
                        f"{self.path(shard)}: needs room to be written; found {error.strerror}; make some and run the "
                        "same command again, it goes on from there"
                    ) from None
                bar.update(len(some))

    def tensor(self, name: str) -> Tensor:
        """A tensor of all traces, in their order, its first dimensions joined."""
        return torch.cat(list(self._parts(name)))

    def rows(self, name: str, indices: Tensor | None = None) -> Rows:
        """The rows of `tensor`, but read only when they are asked for.

        Args:
            indices: ascending int64 [m]: those that are rows; all, where there are none.
        """
        return JoinedRows(list(self._parts(name)), indices)

    def _range(self, shard: int) -> range:
        return range(shard * TRACES, min((shard + 1) * TRACES, self.traces))

    def _parts(self, name: str) -> Iterator[Tensor]:
        if not self.traces:
            raise HybridError(f"{self.folder}: must be of at least one trace to be used; found none; give some")
        if missing := self.missing():
            raise HybridError(
                f"{self.folder}: must be complete to be used; found {len(missing)} of {self.count} shards missing; run "
                "the same command again, it goes on from there"
            )
        for shard in range(self.count):
            try:
                with safe_open(self.path(shard), framework="pt") as file:
                    yield file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise HybridError(
                    f"{self.path(shard)}: must be a shard that was written whole; found {error}; delete it and run "
                    "the same command again"
                ) from None

    def _claim(self, made_of: dict[str, Any]) -> None:
        """Say in the folder what its shards are of; HybridError where they are of something else, or nothing says."""
        path = self.folder / INDEX_FILE
        # Asked first: another process may begin meanwhile, and writes its index before its shards.
        begun = len(self.missing()) < self.count
        if path.is_file() or begun:
            try:
                found = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                found = None
            if found != made_of:
                names = [name for name in made_of if not isinstance(found, dict) or found.get(name) != made_of[name]]
                raise HybridError(
                    f"{self.folder}: must be empty, or made of the same {', '.join(names)}; found others; name another "
                    "folder, or delete it"
                )
            return
        try:
            write_file(path, json.dumps(made_of, indent=1).encode())
        except OSError as error:
            raise HybridError(
                f"{self.folder}: must be a folder to write to; found {error.strerror}; name another"
            ) from None
