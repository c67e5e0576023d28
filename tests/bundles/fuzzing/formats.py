"""Fuzz cases: other programs' files."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from lm_eval_hybrid.bundles.formats import READABLE, convert
from lm_eval_hybrid.bundles.formats.convert import ImportOptions
from lm_eval_hybrid.bundles.manifest import ModelCard
from tests.bundles.fuzzing.bundles import LATENTS, THINKING, WIDTH, spoil, tensors
from tests.bundles.fuzzing.mutating import COMMON, JSON, YAML, Draw, as_json, as_yaml, damaged, mutated, odd, words
from tests.bundles.fuzzing.sandbox import Action, Sandbox


def reads(draw: Draw, sandbox: Sandbox, source: Path, format: str, **usual: Any) -> list[Action]:
    """Import a file or folder in a given or a detected format."""
    others = {
        "base": st.sampled_from(["org/base", "org/known"]),
        "thinking": st.sampled_from(["org/thinking", "org/known"]),
        "layer": st.sampled_from([None, 0, 1, 2, 1 << 40]),
        "sae_layer": st.sampled_from([None, 1]),
        "latents": st.sampled_from([None, (0,), (1, 1), (-1,), ()]),
    }
    arguments = {"base": "org/base", "thinking": "org/thinking", **usual}
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(list(others)))
        arguments[name] = draw(others[name])
    options = ImportOptions("made", "1.0.0", **arguments)
    chosen = draw(st.sampled_from([format] * 20 + [None] * 20 + list(READABLE)))
    return [lambda: convert.read(source, options, chosen).save(sandbox.out / "made")]


def known_models(id: str) -> ModelCard | None:
    """Replaces the lookup of models, which takes seconds."""
    return ModelCard(id=id, hidden_size=THINKING, layers=4) if id == "org/known" else None


def gguf_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    fields = {
        "general.architecture": (8, gguf_text("controlvector")),
        "controlvector.model_hint": (8, gguf_text("llama")),
    }
    names = st.sampled_from(["general.alignment", "general.alignment", "general.architecture"]) | words()
    for name in draw(st.lists(names, max_size=3)):
        kind = draw(st.integers(0, 13))
        number = draw(st.sampled_from([0.0, 1.0, 8.0, 32.0, 1e300, float("nan")]))
        whole = draw(st.sampled_from([0, 1, 8, 32, 33, 1 << 16, 1 << 31, 1 << 63]))
        value = {6: struct.pack("<f", min(number, 1e30)), 12: struct.pack("<d", number), 8: gguf_text(draw(words()))}
        value[9] = struct.pack("<IQ", draw(st.integers(0, 13)), whole) + draw(st.binary(max_size=40))
        fields[name] = (kind, value.get(kind, whole.to_bytes(8, "little")[: {0: 1, 1: 1, 2: 2, 7: 1}.get(kind, 4)]))
    data = bytes(draw(st.sampled_from([0, 24, 64, 4096])))
    shapes = st.sampled_from([[6], [6], [0], [], [2, 3], [1 << 40], [1 << 63, 2]]) | st.lists(st.integers(0, 9))
    named = st.sampled_from(["direction.2", "direction.0", "direction.99", "direction.2\n", "other"]) | words()
    part = st.tuples(named, shapes, st.sampled_from([0, 0, 0, 1, 2, 99]), st.sampled_from([0, 0, 32, 24, 1 << 63]))
    head = gguf_head(fields, [("direction.2", [WIDTH], 0, 0), *draw(st.lists(part, max_size=3))])
    path = sandbox.inside / "vector.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    if draw(st.integers(0, 2)) == 0:
        path.write_bytes(damaged(draw, path.read_bytes()))
    return reads(draw, sandbox, path, "gguf", thinking="org/known", layer=2)


def gguf_head(fields: Mapping[str, tuple[int, bytes]], parts: Sequence[tuple[str, Sequence[int], int, int]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(fields))
    for name, (kind, value) in fields.items():
        head += gguf_text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in parts:
        head += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head


def gguf_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call

    def __deepcopy__(self, memo: object) -> Calls:
        return self  # copying would make the call


def held(sandbox: Sandbox) -> st.SearchStrategy[Any]:
    """Values that a file of torch.save may hold instead of a tensor."""
    sound = torch.arange(float(WIDTH))
    views = [sound[:1].expand(1 << 25), sound[:1].expand(1 << 24), sound[:1].expand(2, 3), sound[::2], sound[:0]]
    kinds = [sound.half(), sound.double(), sound.long(), sound > 1, sound.to(torch.float8_e5m2), sound * 1j, sound / 0]
    others = [sound[0], torch.eye(3).to_sparse(), torch.nn.Parameter(sound), torch.empty(6, device="meta")]
    run = [Calls(os.mkdir, str(sandbox.mark)), Calls(os.system, f"touch {sandbox.mark}"), Calls(bytearray, 1 << 32)]
    return st.sampled_from([*views, *kinds, *others, *run, "text", (1, 2), 10**400, sound.numpy()]) | odd()


def torch_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    entry = {"steering_vector": torch.arange(float(WIDTH)), "steering_coefficient": 1.0, "action": "add"}
    sound = {"layers.2": {**entry, "bias": None, "head_index": None}}
    path = sandbox.inside / "vectors.pt"
    kind = draw(st.sampled_from(["held", "held", "damaged", "written", "plain"]))
    if kind == "written":
        path.write_bytes(torch_archive(draw, pickled(draw, sandbox)))
    elif kind == "plain":  # without an archive around it
        path.write_bytes(pickle.dumps(draw(held(sandbox)), draw(st.integers(0, 5))))
    else:
        tree = mutated(draw, sound, held(sandbox)) if kind == "held" else sound
        torch.save(tree, path, _use_new_zipfile_serialization=draw(st.integers(0, 9)) > 0)
    if kind == "damaged":
        path.write_bytes(damaged(draw, path.read_bytes()))
    return reads(draw, sandbox, path, "steered", thinking="org/known")


def pickled(draw: Draw, sandbox: Sandbox) -> bytes:
    """A handwritten pickle, often invalid."""
    calls = ["os system", "posix system", "builtins eval", "builtins bytearray", "_codecs encode", "builtins exec"]
    calls += ["torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage", "numpy dtype"]
    calls += ["numpy._core.multiarray _reconstruct", "torch.jit load", "torch.storage _load_from_bytes"]
    pieces = [b"}", b"]", b"(", b")", b"N", b"K\1", b"\x86", b"\x85", b"R", b"s", b"u", b"e", b"a", b"b", b"Q", b"0"]
    pieces += [b"q\0", b"h\0", b"t", b"2", b"\x81", b"\x8a\xff" + bytes(255), b"J\xff\xff\xff\x7f", b"\x93", b"\x94"]
    pieces += [b"c" + call.replace(" ", "\n").encode() + b"\n" for call in calls]
    texts = [f"touch {sandbox.mark}", "utf-32", "punycode", "hex", "a" * 1000, "storage", "0", "cpu"]
    pieces += [b"X" + struct.pack("<I", len(text)) + text.encode() for text in texts]
    return b"\x80\2" + b"".join(draw(st.lists(st.sampled_from(pieces), max_size=24))) + b"."


def torch_archive(draw: Draw, hostile: bytes) -> bytes:
    """An archive that resembles one of torch.save."""
    name = draw(st.sampled_from(["data.pkl"] * 4 + ["DATA.PKL", "a/data.pkl", "../data.pkl", "data.pkl\0"]))
    parts = [(name, hostile), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(24))]
    if draw(st.booleans()):
        parts.append(("data.pkl", b"\x80\2}."))
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for part, data in draw(st.permutations(parts)) if draw(st.booleans()) else parts:
            packed.writestr(f"x/{part}", data, compression)
    return buffer.getvalue()


def csv_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    coder = sandbox.inside / "coder"
    coder.mkdir()
    weights = save({"W_dec": torch.ones(LATENTS, WIDTH)})
    (coder / "sae.safetensors").write_bytes(weights if draw(st.booleans()) else tensors(draw, weights))
    if draw(st.integers(0, 3)) == 0:
        spoil(draw, sandbox, coder)
    row = {"loader": "sparsify", "action": "add", "sparse_model": "coder", "hookpoint": "layers.2"}
    row |= {"feature_index": "1", "steering_coefficient": "2.0", "head_index": "", "description": "Words"}
    cells = words() | st.sampled_from(["../inside/coder", str(coder), "/dev", "1e400", "-1", "0x1", '"', 'a"b', ","])
    names = list(row)
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        row[name] = draw(cells)
    if draw(st.integers(0, 4)) == 0:
        names[draw(st.integers(0, len(names) - 1))] = draw(words())
    lines = [names] + [list(row.values())] * draw(st.sampled_from([1, 1, 1, 2, 0]))
    text = "\n".join(",".join(f'"{cell}"' if "\n" in cell else cell for cell in line) for line in lines)
    path = sandbox.inside / "rows.csv"
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(damaged(draw, data) if draw(st.integers(0, 4)) == 0 else data)
    return reads(draw, sandbox, path, "steered", thinking="org/known")


def saelens_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    folder = sandbox.inside / "sae"
    folder.mkdir()
    config = {"architecture": "standard", "d_in": THINKING, "d_sae": LATENTS, "apply_b_dec_to_input": True, "k": 2}
    config |= {"normalize_activations": "none", "reshape_activations": "none", "activation_fn_kwargs": {"k": 1}}
    config["metadata"] = {"hook_name": "blocks.1.hook_resid_post", "model_name": "a-model"}
    shapes = {"W_enc": (THINKING, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, THINKING), "b_dec": (THINKING,)}
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    extra = st.sampled_from([torch.ones(4), torch.zeros(4) / 0, torch.ones(4) > 0, torch.ones(4).to(torch.float8_e5m2)])
    for name in draw(st.lists(st.sampled_from(["threshold", "scaling_factor", "x\n\x1b[2J", "W_enc"]), max_size=1)):
        weights[name] = draw(extra)
    data = save(weights)
    values = odd([*COMMON, *JSON]) | st.sampled_from(["topk", "jumprelu", "constant_norm_rescale", "blocks.0.hook_mlp"])
    if draw(st.booleans()):
        config = mutated(draw, config, values)
    (folder / "cfg.json").write_bytes(as_json(config))
    (folder / "sae_weights.safetensors").write_bytes(data if draw(st.booleans()) else tensors(draw, data))
    if draw(st.integers(0, 4)) == 0:
        spoil(draw, sandbox, folder)
    return reads(draw, sandbox, folder, "saelens", base="org/known", layer=2)


def mapping_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    folder = sandbox.inside / "mapped"
    folder.mkdir()
    fields: dict[str, Any] = {
        "tensors": {
            "vector.check": {"file": "a.safetensors", "tensor": "rows", "row": 1},
            "vector.plan": {"file": "a.safetensors", "tensor": "v"},
            "sae.encoder.weight": {"file": "a.safetensors", "tensor": "W_enc", "transpose": True},
        },
        "behaviors": [{"key": key, "latent": latent, "title": "T"} for latent, key in enumerate(("check", "plan"))],
        "steering": {"layer": 2, "coefficients": [0.5, 1.0], "windows": [1, 0]},
        "sae": {"layer": 1, "latents": LATENTS, "k": 2},
    }
    data = save({"rows": torch.ones(5, WIDTH), "v": torch.ones(WIDTH), "W_enc": torch.ones(THINKING, LATENTS)})
    if draw(st.integers(0, 3)):
        names = st.sampled_from(["rows", "W_enc", "../a.safetensors", "x\n\x1b[2J", "bias", "sae.mean"])
        fields = mutated(draw, fields, odd([*COMMON, *YAML]) | names)
    text = as_yaml(fields)
    (folder / "mapping.yaml").write_bytes(damaged(draw, text) if draw(st.integers(0, 4)) == 0 else text)
    (folder / "a.safetensors").write_bytes(data if draw(st.booleans()) else tensors(draw, data))
    if draw(st.integers(0, 4)) == 0:
        spoil(draw, sandbox, folder)
    return reads(draw, sandbox, folder, "mapping")


def reference_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    folder = sandbox.inside / "results"
    shutil.copytree(sandbox.root / "reference", folder)
    for path in draw(st.lists(st.sampled_from(sorted(folder.rglob("*.*"))), min_size=1, max_size=2, unique=True)):
        if draw(st.integers(0, 4)) == 0:
            path.write_bytes(damaged(draw, path.read_bytes()))
        elif path.suffix == ".json":
            path.write_bytes(as_json(mutated(draw, json.loads(path.read_bytes()), odd([*COMMON, *JSON]))))
        else:
            tree = torch.load(path, weights_only=False)  # ours
            torch.save(mutated(draw, tree, held(sandbox)), path)
    if draw(st.integers(0, 4)) == 0:
        spoil(draw, sandbox, folder)
    return reads(draw, sandbox, folder, "reference")
