"""Bombs: small inputs that would expand to huge ones."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import convert
from lm_eval_hybrid.bundles.formats.convert import ImportOptions
from tests.bundles.formats import layout
from tests.bundles.fuzzing.bundles import put_bundle, well_formed
from tests.bundles.fuzzing.formats import gguf_head, gguf_text
from tests.bundles.fuzzing.mutating import as_yaml
from tests.bundles.fuzzing.sandbox import Action, Sandbox, command


def manifest_bomb(sandbox: Sandbox, start: bytes, piece: bytes, end: bytes) -> list[Action]:
    """A manifest of the largest size allowed, filled by repeating one piece."""
    data = start + piece * (((1 << 20) - len(start) - len(end)) // len(piece)) + end
    folder = put_bundle(sandbox, files={"behavior.yaml": data})
    return [lambda: contents.read(folder), lambda: command("validate", folder)]


def behaviors_bomb(sandbox: Sandbox) -> list[Action]:
    """A bundle of many behaviors of width 1, which make tables of all by all."""
    count = 1000
    folder = put_bundle(sandbox)
    fields = yaml.safe_load((folder / "behavior.yaml").read_bytes())
    keys = [f"k{number}" for number in range(count)]
    words = {"title": "T", "description": "", "examples": [], "norm": 0.0}
    fields["behaviors"] = [{**words, "key": k, "latent": i, "tensor": f"vector.{k}"} for i, k in enumerate(keys)]
    fields["base"]["hidden_size"] = fields["thinking"]["hidden_size"] = 1
    fields["sae"]["latents"] = count
    shapes = {"bias": [1], "sae.encoder.weight": [count, 1], "sae.encoder.bias": [count], "sae.mean": [1]}
    shapes |= {"sae.decoder.weight": [1, count], "sae.decoder.bias": [1], **{f"vector.{key}": [1] for key in keys}}
    data = well_formed([(name, "F32", shape) for name, shape in shapes.items()])
    fields["files"]["tensors.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "tensors.safetensors").write_bytes(data)
    (folder / "behavior.yaml").write_bytes(as_yaml(fields))
    return [lambda: command("show", folder), lambda: command("diff", folder, folder)]


def arms_bomb(sandbox: Sandbox) -> list[Action]:
    """Results with an arm each, which make a column each."""
    folder = put_bundle(sandbox)
    fields = yaml.safe_load((folder / "behavior.yaml").read_bytes())
    (result,) = fields["results"]
    fields["results"] = [{**result, "scores": {f"arm{number}": 0.5}} for number in range(1000)]
    (folder / "behavior.yaml").write_bytes(as_yaml(fields))
    return [lambda: command("show", folder), lambda: Bundle.load(folder).encoded()]


def header_bomb(sandbox: Sandbox) -> list[Action]:
    one = b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(one % number for number in range(1_000_000)) + b"}"
    folder = put_bundle(sandbox, files={"tensors.safetensors": struct.pack("<Q", len(header)) + header})
    return [lambda: contents.faults(folder)]


def read_bomb(sandbox: Sandbox, name: str, data: bytes) -> list[Action]:
    (sandbox.inside / name).write_bytes(data)
    options = ImportOptions("made", "1.0.0", "org/base", "org/known", layer=2)
    return [lambda: convert.read(sandbox.inside / name, options)]


def overlap_bomb(sandbox: Sandbox) -> list[Action]:
    """Many tensors of a control vector that share the same bytes."""
    fields = {"general.architecture": (8, gguf_text("controlvector"))}
    head = gguf_head(fields, [(f"direction.{layer}", [1 << 20], 0, 0) for layer in range(1000)])
    return read_bomb(sandbox, "vector.gguf", head + bytes(-len(head) % 32) + bytes(4 << 20))


def packed_bomb(sandbox: Sandbox) -> list[Action]:
    """A compressed file of torch.save: zeros, which expand a thousandfold."""
    buffer = io.BytesIO()
    torch.save({"layers.2": {"steering_vector": torch.zeros(1 << 27), "action": "add"}}, buffer)
    with (
        zipfile.ZipFile(buffer) as plain,
        zipfile.ZipFile(sandbox.inside / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return read_bomb(sandbox, "vectors.pt", (sandbox.inside / "a.pt").read_bytes())


def array_bomb(sandbox: Sandbox) -> list[Action]:
    """A control vector's file whose lists claim to be endless."""
    fields = {"general.tags": (9, struct.pack("<IQ", 0, 1 << 62)), "a": (9, struct.pack("<IQ", 9, 1 << 62))}
    return read_bomb(sandbox, "vector.gguf", gguf_head(fields, []))


def reference_bomb(sandbox: Sandbox, change: Callable[[Path], object]) -> list[Action]:
    folder = sandbox.inside / "results"
    shutil.copytree(sandbox.root / "reference", folder)
    change(folder)
    options = ImportOptions("made", "1.0.0", "org/base", "org/thinking", layer=2)
    return [lambda: convert.read(folder, options, "reference")]


def views_bomb(folder: Path) -> None:
    """Vectors that are views of a single value."""
    for path in (folder / layout.VECTORS).iterdir():
        torch.save(torch.zeros(1).expand(1 << 27), path)
    shutil.rmtree(folder / layout.HYPERPARAMETERS)


def json_bomb(folder: Path, item: str) -> None:
    (path,) = (folder / layout.TAXONOMIES).glob("*.json")
    path.write_text('{"x": [' + f"{item}," * ((1 << 26) // (len(item) + 1) - 20) + "1]}")


def rows_bomb(sandbox: Sandbox) -> list[Action]:
    """One tensor that many behaviors share."""
    count = 1000
    tensors = {f"vector.k{number}": {"file": "a.safetensors", "tensor": "v"} for number in range(count)}
    fields = {
        "tensors": {**tensors, "sae.encoder.weight": {"file": "a.safetensors", "tensor": "e"}},
        "behaviors": [{"key": f"k{number}", "latent": number, "title": "T"} for number in range(count)],
        "steering": {"layer": 2, "coefficients": [1.0], "windows": [0]},
        "sae": {"layer": 1, "latents": count, "k": 1},
    }
    (sandbox.inside / "mapping.yaml").write_bytes(as_yaml(fields))
    (sandbox.inside / "a.safetensors").write_bytes(
        well_formed([("v", "F32", [(1 << 20) - 1]), ("e", "F32", [count, 1])])
    )
    options = ImportOptions("made", "1.0.0", "org/base", "org/thinking")
    return [lambda: convert.read(sandbox.inside, options)]


def sparse_bomb(sandbox: Sandbox) -> list[Action]:
    """A huge sparse file."""
    folder = put_bundle(sandbox)
    os.truncate(folder / "tensors.safetensors", 1 << 40)
    return [lambda: contents.faults(folder), lambda: command("show", folder)]


BOMBS: dict[str, Callable[[Sandbox], list[Action]]] = {
    "results": lambda sandbox: manifest_bomb(sandbox, b"results: [", b"{},", b"]"),
    "scalars": lambda sandbox: manifest_bomb(sandbox, b"authors: [", b"1,", b"]"),
    "sexagesimal": lambda sandbox: manifest_bomb(sandbox, b"seed: 1", b":59", b""),
    "behaviors": behaviors_bomb,
    "arms": arms_bomb,
    "header": header_bomb,
    "sparse": sparse_bomb,
    "overlap": overlap_bomb,
    "packed": packed_bomb,
    "array": array_bomb,
    "views": lambda sandbox: reference_bomb(sandbox, views_bomb),
    "objects": lambda sandbox: reference_bomb(sandbox, lambda folder: json_bomb(folder, "{}")),
    "numbers": lambda sandbox: reference_bomb(sandbox, lambda folder: json_bomb(folder, "0.5")),
    "rows": rows_bomb,
}
