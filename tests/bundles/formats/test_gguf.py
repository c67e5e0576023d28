"""Control vectors: ours are readable by gguf, llama.cpp and repeng, and theirs by us."""

import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import gguf as format
from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions
from lm_eval_hybrid.common.errors import HybridError
from tests.tiny_system import WIDTH, TinySystem, write_system

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


@pytest.fixture
def options(system: TinySystem) -> ImportOptions:
    return ImportOptions("imported", "1.0.0", str(system.base), str(system.thinking))


def vector(seed: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(width, np.float32)


def written(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector", **fields: str) -> Path:
    """A file by the gguf package's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {"controlvector.model_hint": "llama", **fields}.items():
        writer.add_string(name, value)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    writer.add_array("general.tags", ["a", "b"])
    writer.add_array("controlvector.numbers", [1, 2, 3])
    writer.add_float32("controlvector.scale", 0.5)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_repeng(path: Path) -> tuple[str, dict[int, np.ndarray]]:
    """(model type, directions by layer), read as repeng does."""
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert bytes(architecture.parts[-1]) == b"controlvector"
    hint = bytes(reader.get_field("controlvector.model_hint").parts[-1]).decode()
    named = [tensor for tensor in reader.tensors if tensor.name.startswith("direction.")]
    return hint, {int(tensor.name.split(".")[1]): tensor.data for tensor in named}


def by_llama_cpp(path: Path) -> np.ndarray:
    """[layers, d], read as llama.cpp does: row il - 1 is added after block il."""
    tensors = gguf.GGUFReader(path).tensors
    assert 0 < len(tensors) <= 128
    layers = [int(tensor.name.partition(".")[2]) for tensor in tensors if tensor.name.partition(".")[0] == "direction"]
    assert min(layers) > 0
    assert {tensor.tensor_type for tensor in tensors} == {gguf.GGMLQuantizationType.F32}
    assert len({tuple(tensor.shape.tolist()) for tensor in tensors}) == 1
    assert all(len(tensor.shape) == 1 for tensor in tensors)
    rows = np.zeros((max(layers), tensors[0].n_elements), np.float32)
    for layer, tensor in zip(layers, tensors, strict=True):
        rows[layer - 1] = tensor.data
    return rows


def test_a_written_file_is_readable_by_others(system: TinySystem, tmp_path: Path) -> None:
    bundle, path = Bundle.load(system.bundle), tmp_path / "mine.gguf"
    lost = format.write(bundle, ExportOptions("check", 0.5), path)
    expected = (0.5 * (bundle.bias + bundle.tensors["vector.check"])).numpy()
    (tensor,) = gguf.GGUFReader(path).tensors
    assert (tensor.name, tensor.tensor_type.name) == ("direction.2", "F32")
    assert np.array_equal(tensor.data, expected)
    hint, directions = by_repeng(path)
    assert hint == "llama"
    assert np.array_equal(directions[2], expected)
    rows = by_llama_cpp(path)
    assert np.array_equal(rows[1], expected)
    assert not rows[0].any()
    assert any("gate disagreement" in line for line in lost)
    assert any("3 behaviors" in line for line in lost)
    assert any("scale 1" in line for line in lost)


def test_round_trip(system: TinySystem, options: ImportOptions, tmp_path: Path) -> None:
    bundle = Bundle.load(system.bundle)
    format.write(bundle, ExportOptions("plan", -2.0), tmp_path / "a.gguf")
    once = format.read(tmp_path / "a.gguf", options)
    assert torch.equal(once.tensors["vector.direction"], -2 * (bundle.bias + bundle.tensors["vector.plan"]))
    steering = once.manifest.steering
    assert (steering.layer, steering.coefficients, steering.windows) == (2, (1.0,), (0,))
    assert (steering.gate, steering.select) == ("always", "fixed")
    format.write(once, ExportOptions(), tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_files_of_the_packages_writer_are_read(options: ImportOptions, tmp_path: Path, dtype: type) -> None:
    tensors = {f"direction.{layer}": vector(layer).astype(dtype) for layer in (1, 2, 3)}
    path = written(tmp_path / "theirs.gguf", tensors)
    bundle = format.read(path, replace(options, layer=3))
    assert torch.equal(bundle.tensors["vector.direction"], torch.from_numpy(tensors["direction.3"].astype(np.float32)))
    assert bundle.manifest.steering.layer == 3


def test_one_layer_of_several_must_be_chosen(
    options: ImportOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "theirs.gguf", {f"direction.{layer}": vector(layer) for layer in (1, 2)})
    with pytest.raises(HybridError, match=r"holds direction.1, direction.2; .*choose"):
        format.read(path, options)
    with pytest.raises(HybridError, match="none at layer 3"):
        format.read(path, replace(options, layer=3))
    format.read(path, replace(options, layer=1))
    assert "left out: direction.2" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "fields", "said"),
    [
        ({"direction.1": vector(0)}, {"architecture": "llama"}, "general.architecture is 'llama'"),
        ({"blk.1": vector(0)}, {}, "no tensor direction.N"),
        ({"direction.one": vector(0)}, {}, "no tensor direction.N"),
        ({"direction.1": vector(0).reshape(2, -1)}, {}, "not a vector of F32 or F16"),
        ({"direction.1": vector(0).astype(np.float64)}, {}, "not a vector of F32 or F16"),
        ({"direction.1": vector(0, WIDTH + 1)}, {}, "has width 32; .* width, 33"),
        ({"direction.1": vector(0) * np.float32(np.nan)}, {}, "finite"),
        ({"direction.9": vector(0)}, {}, "must be below 4"),
    ],
)
def test_other_files_are_refused_in_one_line(
    options: ImportOptions, tmp_path: Path, tensors: dict[str, np.ndarray], fields: dict[str, str], said: str
) -> None:
    path = written(tmp_path / "theirs.gguf", tensors, **fields)
    with pytest.raises(HybridError, match=said) as error:
        format.read(path, options)
    assert "\n" not in str(error.value)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 1, keys: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"controlvector")


def tensor(name: bytes = b"direction.1", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGML" + bytes(64),
        header(version=1),
        b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
        header(keys=1 << 60),
        header(tensors=1 << 60),
        header() + struct.pack("<Q", 1 << 40),
        header() + text(b"a") + struct.pack("<I", 99),
        # Without a limit the package's reader never ends with these.
        header() + text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 62),
        header() + text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62),
        header() + text(b"a") + struct.pack("<IIQ", 9, 9, 1),
        header() + ARCHITECTURE + tensor(shape=(1,) * 5),
        header() + ARCHITECTURE + tensor(shape=(1 << 60,)),
        header() + ARCHITECTURE + tensor(offset=1 << 60) + bytes(64),
        header(2) + ARCHITECTURE + tensor() + tensor() + bytes(128),
        header(0, 2) + ARCHITECTURE + text(b"general.alignment") + struct.pack("<II", 4, 0),
        header(0, 0),
    ],
)
def test_headers_that_lie_are_refused_at_once(tmp_path: Path, options: ImportOptions, data: bytes) -> None:
    path, start = tmp_path / "lie.gguf", time.monotonic()
    path.write_bytes(data)
    with pytest.raises(HybridError, match=r"lie\.gguf: ") as error:
        format.read(path, options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 2


def test_empty_directions_are_refused(tmp_path: Path, options: ImportOptions) -> None:
    (tmp_path / "a.gguf").write_bytes(header() + ARCHITECTURE + tensor(shape=(0,)) + bytes(64))
    with pytest.raises(HybridError, match="must be one vector"):
        format.read(tmp_path / "a.gguf", options)


def test_broken_files_are_refused_in_one_line(options: ImportOptions, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.gguf", {"direction.1": vector(0)}).read_bytes()
    broken = tmp_path / "broken.gguf"
    for place in range(0, len(whole) - 4 * WIDTH, 3):
        broken.write_bytes(whole[:place])
        with pytest.raises(HybridError) as error:
            format.read(broken, options)
        assert "\n" not in str(error.value)
    for place in range(0, len(whole), 3):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            format.read(broken, options)
        except HybridError as found:
            assert "\n" not in str(found)


def test_large_files_are_refused_without_reading(options: ImportOptions, tmp_path: Path) -> None:
    with (tmp_path / "a.gguf").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(HybridError, match="larger than the limit"):
        format.read(tmp_path / "a.gguf", options)


def test_layer_zero_and_existing_files_are_refused(make_bundle: Any, fields: dict, tmp_path: Path) -> None:
    bundle = make_bundle(steering={**fields["steering"], "layer": 0})
    with pytest.raises(HybridError, match="layer 0"):
        format.write(bundle, ExportOptions("check"), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.gguf").touch()
    with pytest.raises(HybridError, match="exists already"):
        format.write(make_bundle(), ExportOptions("check"), tmp_path / "a.gguf")


def test_bases_of_unknown_type_have_no_hint(make_bundle: Any, fields: dict, tmp_path: Path) -> None:
    bundle = make_bundle(base={**fields["base"], "architecture": None})
    assert any(
        "written as `unknown`" in line for line in format.write(bundle, ExportOptions("check"), tmp_path / "a.gguf")
    )
    assert by_repeng(tmp_path / "a.gguf")[0] == "unknown"


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Qwen2ForCausalLM", "qwen2"),
        ("GPTNeoXForCausalLM", "gpt_neox"),
        ("GPT2LMHeadModel", "gpt2"),
        ("llama", "llama"),
        ("StrangeForCausalLM", None),
        (None, None),
    ],
)
def test_hints_are_transformers_types(architecture: str | None, name: str | None) -> None:
    assert format.model_type(architecture) == name


def test_without_the_package_the_error_says_what_to_install(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(HybridError, match=r"pip install 'lm-eval-hybrid\[gguf\]'"):
        format.write(make_bundle(), ExportOptions("check"), tmp_path / "a.gguf")
