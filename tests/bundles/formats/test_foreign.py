"""Files of torch.save, sound and hostile. A pickle that is executed would leave a file behind."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_eval_hybrid.bundles.formats.foreign import UnreadArray, as_float32, load_torch
from lm_eval_hybrid.common.errors import HybridError
from tests.bundles.formats.layout import rename_numpy

LIMIT = 1 << 20


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def saved(path: Path, held: object) -> Path:
    torch.save(held, path)
    return path


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file like torch.save's, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as parts:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            parts.writestr(f"{path.stem}/{name}", data)
    return path


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(HybridError, match=pattern) as caught:
        load_torch(path, LIMIT)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and str(path) in str(caught.value)


def test_tensors_and_plain_data_come_back(tmp_path: Path) -> None:
    vector = torch.arange(3.0)
    held = load_torch(saved(tmp_path / "a.pt", {"bias": vector, "k": 3, "half": vector.half()}), LIMIT)
    assert torch.equal(held["bias"], vector) and held["k"] == 3 and held["half"].dtype == torch.float16


def test_a_parameter_is_a_tensor(tmp_path: Path) -> None:
    held = load_torch(saved(tmp_path / "a.pt", torch.nn.Parameter(torch.ones(2))), LIMIT)
    copy = as_float32(held, "it")
    assert torch.equal(copy, torch.ones(2)) and not copy.requires_grad


@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_either_numpy_are_left_unread(tmp_path: Path, core: str) -> None:
    arrays = {"labels": np.arange(4), "centres": np.ones((2, 3), np.float32), "loss": np.float64(0.5)}
    path = saved(tmp_path / "a.pt", {**arrays, "bias": torch.ones(2)})
    rename_numpy(path, core)
    assert f"cnumpy.{core}.multiarray\n".encode() in path.read_bytes()
    before = set(torch.serialization.get_safe_globals())
    held = load_torch(path, LIMIT)
    assert torch.equal(held["bias"], torch.ones(2))
    assert all(type(held[name]) is UnreadArray for name in arrays)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("function", [os.system, eval, os.makedirs])
def test_nothing_is_called(tmp_path: Path, function: object) -> None:
    mark = tmp_path / "mark"
    argument = {os.system: f"touch {mark}", eval: f"open({str(mark)!r}, 'w')"}.get(function, str(mark))
    refused(saved(tmp_path / "a.pt", {"bias": Calls(function, argument)}), "Unsupported global|unsupported GLOBAL")
    refused(archive(tmp_path / "b.pt", pickle.dumps(Calls(function, argument), 4)), "tensors and plain data")
    assert not mark.exists()


def test_arrays_of_objects_take_no_memory(tmp_path: Path) -> None:
    class Huge:
        def __reduce__(self) -> tuple:
            return np.empty(0).__reduce__()[0], (np.ndarray, (1 << 40,), b"O")

    assert type(load_torch(saved(tmp_path / "a.pt", {"a": Huge()}), LIMIT)["a"]) is UnreadArray


def test_storages_are_as_long_as_their_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", torch.ones(300))
    with zipfile.ZipFile(path) as parts:
        held = {name: parts.read(name) for name in parts.namelist()}
    longer = (60_000).to_bytes(2, "little")
    with zipfile.ZipFile(path, "w") as parts:
        for name, data in held.items():
            parts.writestr(name, data.replace(b"M" + (300).to_bytes(2, "little"), b"M" + longer))
    refused(path, "record size")


def test_packed_and_broken_archives_are_refused(tmp_path: Path) -> None:
    refused(archive(tmp_path / "a.pt", b"\x80\x02}." + bytes(10_000), zipfile.ZIP_DEFLATED), "larger than the file")
    (tmp_path / "b.pt").write_bytes(b"no archive")
    refused(tmp_path / "b.pt", "save it again with torch.save")
    whole = saved(tmp_path / "c.pt", torch.ones(100)).read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "d.pt").write_bytes(whole[:end])
        refused(tmp_path / "d.pt", "save it again with torch.save")
    with zipfile.ZipFile(tmp_path / "e.pt", "w") as parts:
        parts.writestr("e/version", "3")
    refused(tmp_path / "e.pt", "save it again with torch.save")
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "f.pt").write_bytes(buffer.getvalue())
    refused(tmp_path / "f.pt", r"torch 1\.6")


def test_files_are_bounded_and_regular(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", torch.ones(1000))
    with pytest.raises(HybridError, match="larger than the limit of 1,000 bytes"):
        load_torch(path, 1000)
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "not a regular file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_become_float32_copies(dtype: torch.dtype) -> None:
    value = torch.tensor([0.5, -2.0, 3.0], dtype=dtype)
    copy = as_float32(value, "it")
    assert copy.dtype == torch.float32 and torch.equal(copy, value.float())
    value.zero_()
    assert copy[0] == 0.5


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ([1.0], "it is of type list; it must be a tensor"),
        (torch.arange(3), "int64.*floating-point numbers"),
        (torch.eye(2).to_sparse(), "dense"),
        (torch.ones(1).expand(1 << 15, 1 << 15), "at most"),
        (torch.tensor([1.0, float("nan"), float("inf")]), "it has 2 NaN or infinite of 3"),
        (torch.tensor([1e300], dtype=torch.float64), "it has 1 NaN or infinite of 1"),
    ],
)
def test_other_values_than_float_tensors_are_refused(value: object, pattern: str) -> None:
    with pytest.raises(HybridError, match=pattern):
        as_float32(value, "it")
