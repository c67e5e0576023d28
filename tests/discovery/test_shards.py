import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.activations import store as module
from lm_eval_hybrid.discovery.activations.store import Shards

MADE_OF = {"seed": 1, "layers": [0, 2]}
COUNT = 13


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TRACES", 3)


def rows_of(trace: int) -> Tensor:
    """A trace has as many rows as its number modulo four."""
    return torch.full((trace % 4, 2), float(trace))


def read(some: range) -> Mapping[str, Tensor]:
    return {"rows": torch.cat([rows_of(i) for i in some]), "number": torch.tensor(list(some))}


def fill(folder: Path, read: Callable[[range], Mapping[str, Tensor]] = read, rank: int = 0, world: int = 1) -> Shards:
    shards = Shards(folder, COUNT)
    shards.fill(MADE_OF, read, "test", Ranks(rank, world))
    return shards


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tensors_are_joined_in_the_order_of_traces(tmp_path: Path) -> None:
    shards = fill(tmp_path)
    assert shards.count == 5 == len(list(tmp_path.glob("shard-*"))) and shards.missing() == []
    rows = torch.cat([rows_of(i) for i in range(COUNT)])
    assert torch.equal(shards.tensor("rows"), rows)
    assert shards.tensor("number").tolist() == list(range(COUNT))
    assert torch.equal(shards.joined_rows("rows")[:], rows)
    assert torch.equal(shards.joined_rows("rows", torch.tensor([0, 4, 17]))[:], rows[[0, 4, 17]])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, world: int) -> None:
    fill(tmp_path / "one")
    for rank in (*range(1, world), 0):
        alone = fill(tmp_path / f"rank-{rank}", rank=rank, world=world)
        assert alone.missing() == [shard for shard in range(5) if shard % world != rank]
        shards = fill(tmp_path / "many", rank=rank, world=world)
    assert shards.missing() == []
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")


@pytest.mark.parametrize("lost", range(5))
def test_only_missing_shards_are_written_again(tmp_path: Path, lost: int) -> None:
    shards = fill(tmp_path)
    whole = bytes_of(tmp_path)
    shards.path(lost).unlink()
    assert shards.missing() == [lost]
    with pytest.raises(HybridError, match="1 of 5 shards are missing; run the same"):
        shards.tensor("rows")
    made: list[range] = []
    fill(tmp_path, lambda some: made.append(some) or read(some))
    assert made == [range(3 * lost, min(3 * lost + 3, COUNT))]
    assert bytes_of(tmp_path) == whole


@pytest.mark.parametrize("end", range(5))
def test_an_interruption_leaves_the_finished_shards(tmp_path: Path, end: int) -> None:
    def until(some: range) -> Mapping[str, Tensor]:
        if some.start == 3 * end:
            raise KeyboardInterrupt
        return read(some)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "torn", until)
    assert Shards(tmp_path / "torn", COUNT).missing() == list(range(end, 5))
    torn = tmp_path / "torn" / f".shard-{end:05d}.safetensors.0badcafe.new"
    torn.write_bytes(b"half")
    fill(tmp_path / "torn")
    torn.unlink()
    fill(tmp_path / "one")
    assert bytes_of(tmp_path / "torn") == bytes_of(tmp_path / "one")


def test_another_number_of_processes_can_continue(tmp_path: Path) -> None:
    fill(tmp_path / "torn", rank=1, world=2)
    for rank in range(3):
        fill(tmp_path / "torn", rank=rank, world=3)
    fill(tmp_path / "one")
    assert bytes_of(tmp_path / "torn") == bytes_of(tmp_path / "one")


def test_a_folder_contains_shards_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = fill(tmp_path)
    whole = bytes_of(tmp_path)
    with pytest.raises(HybridError, match="contains shards from different seed; name another"):
        shards.fill({**MADE_OF, "seed": 2}, read, "test")
    with pytest.raises(HybridError, match="contains shards from different seed, layers; name"):
        shards.fill({"seed": 2, "layers": []}, read, "test")
    with pytest.raises(HybridError, match="contains shards from different layers"):
        shards.fill({"seed": 1}, read, "test")
    with monkeypatch.context() as context:
        context.setattr(module, "SHARD_TRACES", 4)
        with pytest.raises(HybridError, match="contains shards from different traces_a_shard"):
            fill(tmp_path)
    assert bytes_of(tmp_path) == whole
    # As JSON reads it back.
    shards.fill({"seed": 1, "layers": (0, 2)}, read, "test")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000])
def test_a_foreign_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(
        HybridError, match=r"contains shards from different .*; name another folder, or delete this one"
    ) as caught:
        fill(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "index.json").read_bytes() == content


def test_shards_without_their_index_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(
        HybridError, match=r"contains shards from different .*; name another folder, or delete this one"
    ):
        fill(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-1]])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    shards = fill(tmp_path)
    shards.path(1).write_bytes(damage(shards.path(1).read_bytes()))
    for use in (shards.tensor, shards.joined_rows):
        with pytest.raises(HybridError, match=r"shard-00001\.safetensors: is damaged"):
            use("rows")
    shards.path(1).unlink()
    fill(tmp_path)
    assert len(shards.tensor("rows")) == sum(i % 4 for i in range(COUNT))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HybridError, match=r"file: cannot be written .File exists.; name"):
        fill(tmp_path / "file")
    with pytest.raises(HybridError, match=r"cannot be written .Not a directory.; name"):
        fill(tmp_path / "file" / "below")


def test_views_are_written_contiguously(tmp_path: Path) -> None:
    grid = torch.arange(100.0).reshape(10, 10)
    shards = fill(tmp_path, lambda some: {"rows": grid.T[some.start : some.stop]})
    assert torch.equal(shards.tensor("rows"), torch.cat([grid.T, grid.T[:0]])[:COUNT])


def test_a_folder_of_no_traces_has_no_shards(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 0)
    shards.fill(MADE_OF, read, "test")
    assert shards.count == 0 and shards.missing() == []
    assert json.loads((tmp_path / "index.json").read_text())["seed"] == 1
    with pytest.raises(HybridError, match="covers no traces; at least one is needed"):
        shards.tensor("rows")
    with pytest.raises(HybridError, match="covers no traces; at least one is needed"):
        shards.joined_rows("rows")
