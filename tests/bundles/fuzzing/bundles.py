"""Fuzz cases: manifests, tensors, folders and archives of bundles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from hypothesis import strategies as st

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store import archive, resolve
from tests.bundles.fuzzing.mutating import (
    COMMON,
    DTYPES,
    JSON,
    NUMBERS,
    SIZES,
    YAML,
    Draw,
    as_json,
    as_yaml,
    damaged,
    mutated,
    odd,
    words,
)
from tests.bundles.fuzzing.sandbox import Action, Sandbox, check_line, command

WIDTH, THINKING, LATENTS = 6, 8, 4  # of the bundle in conftest.py


def manifest(draw: Draw, sandbox: Sandbox) -> bytes:
    """The sound bundle's manifest, mutated as data or as text."""
    data = (sandbox.root / "sound" / "behavior.yaml").read_bytes()
    calls = [
        f"!!python/object/apply:os.{call}" for call in (f"mkdir [{sandbox.mark}]", f"system ['touch {sandbox.mark}']")
    ]
    data = as_yaml(mutated(draw, yaml.safe_load(data), odd([*COMMON, *YAML, *calls])))
    kind = draw(st.sampled_from(["as it is"] * 4 + ["damaged", "encoded", "twice", "lines", "written"]))
    if kind == "damaged":
        return damaged(draw, data)
    if kind == "encoded":
        encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-7"]))
        return data.decode("utf-8", "replace").encode(encoding, "replace")
    if kind == "twice":
        return data + draw(st.sampled_from([b"", b"---\n", b"...\n", b"%YAML 9.9\n---\n"])) + data
    if kind == "lines":
        lines = data.split(b"\n")
        at = draw(st.integers(0, len(lines) - 1))
        lines[at : at + 1] = draw(st.sampled_from([[], [lines[at]] * 2, [b"\t" + lines[at]], [b"\0"], [b"# " * 9]]))
        return draw(st.sampled_from([b"\n", b"\r\n", b"\r"])).join(lines)
    if kind == "written":
        return draw(st.text(max_size=40)).encode()
    return data


def tensors(draw: Draw, sound: bytes) -> bytes:
    """A safetensors file with other tensors, with a header that lies, or broken."""
    length = struct.unpack("<Q", sound[:8])[0]
    header, body = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    kind = draw(st.sampled_from(["header", "well-formed", "well-formed", "values", "damaged", "other", "length"]))
    if kind == "damaged":
        return damaged(draw, sound)
    if kind == "other":
        return draw(st.sampled_from([b"", bytes(8), pickle.dumps(header), sound[:8], as_json(header), b"PK\3\4"]))
    if kind == "length":
        return struct.pack("<Q", draw(st.sampled_from([0, 1, length - 1, length + 1, 1 << 40, (1 << 64) - 1]))) + sound
    if kind == "values":
        altered = bytearray(sound)
        for _ in range(draw(st.integers(1, 3))):
            at = len(sound) - 4 * draw(st.integers(1, len(body) // 4))
            altered[at : at + 4] = struct.pack("<f", draw(st.sampled_from([*NUMBERS[14:17], *NUMBERS[18:], 3e38])))
        return bytes(altered)
    if kind == "header":
        header = mutated(draw, header, odd([*COMMON, *JSON]) | st.sampled_from([*DTYPES, *SIZES]))
        return with_header(header, body)
    parts = [(name, entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    for _ in range(draw(st.integers(1, 2))):
        name, dtype, shape = parts[at := draw(st.integers(0, len(parts) - 1))]
        change = st.tuples(words(), st.just(dtype), st.just(shape)) | st.tuples(
            st.just(name) | words(), st.sampled_from(["F32"] * 9 + list(DTYPES)), st.sampled_from([shape, *SIZES])
        )
        parts[at : at + 1] = [draw(change)] if draw(st.booleans()) else [parts[at], draw(change)]
    return well_formed(parts)


def well_formed(parts: Sequence[tuple[str, str, Sequence[int]]]) -> bytes:
    """A safetensors file of zeros: name, dtype and shape of each tensor."""
    header, end = {}, 0
    for name, dtype, shape in parts:
        count = 0 if 0 in shape else 1
        for size in shape:
            count *= size if size < 1 << 20 else 1
        start, end = end, end + count * DTYPES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return with_header(header, bytes(end))


def with_header(header: object, body: bytes) -> bytes:
    data = as_json(header)
    return struct.pack("<Q", len(data)) + data + body


def put_bundle(sandbox: Sandbox, name: str = "bundle", files: Mapping[str, bytes] | None = None) -> Path:
    """A copy of the sound bundle with some files replaced, and their digests corrected."""
    folder = sandbox.inside / name
    shutil.copytree(sandbox.root / "sound", folder)
    for file, data in (files or {}).items():
        (folder / file).write_bytes(data)
    if files and "behavior.yaml" not in files:
        fields = yaml.safe_load((folder / "behavior.yaml").read_bytes())
        fields["files"] |= {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        (folder / "behavior.yaml").write_bytes(as_yaml(fields))
    return folder


def looks(draw: Draw, sandbox: Sandbox, folder: Path) -> list[Action]:
    """All uses of a folder as a bundle."""
    sound = sandbox.root / "sound"
    more = [("show", folder), ("diff", sound, folder), ("new-version", sound, folder, "--into", sandbox.out)]
    more += [("pack", folder, sandbox.out / "packed.zip"), ("new-version", folder, sound, "--into", sandbox.out)]
    chosen = draw(st.sampled_from(more))
    return [
        lambda: [check_line(fault) for fault in contents.faults(folder)],
        lambda: Bundle.load(resolve.resolve(str(folder))).encoded(),
        lambda: command("validate", folder),
        lambda: command(*chosen),
    ]


def manifest_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    return looks(draw, sandbox, put_bundle(sandbox, files={"behavior.yaml": manifest(draw, sandbox)}))


def tensors_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    sound = (sandbox.root / draw(st.sampled_from(["sound", "sound", "other"])) / "tensors.safetensors").read_bytes()
    data = draw(st.just(sound)) if draw(st.integers(0, 9)) == 0 else tensors(draw, sound)
    return looks(draw, sandbox, put_bundle(sandbox, files={"tensors.safetensors": data}))


def folder_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    folder = put_bundle(sandbox)
    for _ in range(draw(st.integers(1, 2))):
        spoil(draw, sandbox, folder)
    return looks(draw, sandbox, folder)


def spoil(draw: Draw, sandbox: Sandbox, folder: Path) -> None:
    """Replace a file in the folder or below, or the folder itself, with something else."""
    there = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []
    path = draw(st.sampled_from([*there, folder / "extra", folder / "x.pt", folder / "a\x1b\nb", folder]))
    if not path.parent.is_dir():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    links = ["/dev/zero", "/dev/null", "/dev", path.name, "nowhere", "..", str(sandbox.root / "kept"), "../../kept"]
    kind = draw(st.sampled_from(["nothing", "pipe", "folder", "empty", "text", "link", "link", "link"]))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "behavior.yaml").mkdir(parents=True)
    elif kind in ("empty", "text"):
        path.write_bytes(b"text" if kind == "text" else b"")
    elif kind == "link":
        path.symlink_to(draw(st.sampled_from(links)))


def archive_case(draw: Draw, sandbox: Sandbox) -> list[Action]:
    """Well-formed archives of unsound bundles, and of sound ones with unusual members."""
    files = dict(sorted((path.name, path.read_bytes()) for path in (sandbox.root / "sound").iterdir()))
    fields = yaml.safe_load(files["behavior.yaml"])
    for _ in range(draw(st.integers(0, 2))):  # named in the manifest, whose digest of them is right
        name, data = draw(words() | st.sampled_from(["a", "A", "run.sh", "behavior.yaml.", "aux"])), draw(st.binary())
        files[name] = data
        fields["files"][name] = hashlib.sha256(data).hexdigest()
    files["behavior.yaml"] = as_yaml(fields) if draw(st.integers(0, 2)) else manifest(draw, sandbox)
    path = sandbox.inside / "packed.zip"
    path.write_bytes(zipped(draw, files))
    return [
        lambda: archive.unpack(path, sandbox.out / "new"),
        lambda: command("unpack", path, "--into", sandbox.out, "--overwrite"),
    ]


def zipped(draw: Draw, files: Mapping[str, bytes]) -> bytes:
    """A zip archive with odd but consistent headers of its members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", strict_timestamps=False) as packed:
        for name, data in draw(st.permutations(list(files.items()))):
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name.encode("utf-8", "replace").decode()[:60_000]
            if draw(st.integers(0, 7)) == 0:
                entry.external_attr = draw(st.integers(0, (1 << 32) - 1))
                entry.create_system = draw(st.sampled_from([0, 3, 19, 255]))
                entry.comment = draw(st.binary(max_size=20))
                entry.extra = draw(st.sampled_from([b"", b"\x01\0\x10\0" + bytes(16), b"up\x01\0\x01", b"\xff" * 3]))
                entry.internal_attr = draw(st.integers(0, 0xFFFF))
                entry.compress_type = draw(st.sampled_from([0, 0, 0, 8, 12, 14]))
            with packed.open(entry, "w", force_zip64=draw(st.integers(0, 19)) == 0) as member:
                member.write(data)
    return buffer.getvalue()
