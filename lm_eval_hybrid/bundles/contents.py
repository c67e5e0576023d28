"""A bundle's files, checked against its manifest: names, digests, tensors. Needs numpy, never torch.

The order of the checks makes each one safe: size and form of the manifest, kind and size of each file, its digest, and
then the tensors in the very bytes that had the digest. `faults` lists everything wrong, `read` raises the first fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, Manifest, parse, problems, read_bytes
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular

if TYPE_CHECKING:
    import numpy as np

TENSORS_FILE = "tensors.safetensors"
CARD_FILE = "README.md"
MAX_BYTES = 1 << 29  # all files of a bundle together; fifteen behaviors of a 32B model take a few million
_MAX_HEADER_BYTES = 1 << 20  # a thousand behaviors take a tenth


@dataclass(frozen=True)
class Contents:
    """What a sound bundle holds: its manifest, the manifest's sha256, and its tensors by name, all float32."""

    manifest: Manifest
    manifest_sha256: str
    tensors: dict[str, np.ndarray]


def read(folder: Path, sealed: bool = True) -> Contents:
    """The contents of the bundle in `folder`.

    Args:
        sealed: check digests and norms, too; without it a folder that its owner has edited can be read.

    Raises HybridError for the first fault.
    """
    inspection = _Inspection(folder, sealed)
    for fault in inspection.faults():
        raise HybridError(fault)
    return inspection.contents()


def faults(folder: Path) -> list[str]:
    """Everything wrong with the bundle in `folder`, a line each; parts that depend on a faulty one are not checked."""
    return list(_Inspection(folder).faults())


def read_files(folder: Path) -> tuple[Contents, dict[str, bytes]]:
    """A bundle's contents, and the bytes of the files that belong to it, by name, the manifest first.

    Raises HybridError if the bundle is unsound, or changes while it is read.
    """
    found = read(folder)
    digests = {MANIFEST_FILE: found.manifest_sha256, **dict(sorted(found.manifest.files.items()))}
    encoded = {name: read_regular(folder / name, MAX_BYTES) for name in digests}
    for name, data in encoded.items():
        if sha256(data) != digests[name]:
            raise HybridError(f"{folder / name}: changed while it was read; it must not; try again")
    return found, encoded


def tensor_shapes(manifest: Manifest, network: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a bundle, by name; `network` is the coefficient network's width, if it has one."""
    base, thinking, latents = manifest.base.hidden_size, manifest.thinking.hidden_size, manifest.sae.latents
    shapes: dict[str, tuple[int, ...]] = {
        "bias": (base,),
        **{behavior.tensor: (base,) for behavior in manifest.behaviors},
        "sae.encoder.weight": (latents, thinking),
        "sae.encoder.bias": (latents,),
        "sae.decoder.weight": (thinking, latents),
        "sae.decoder.bias": (thinking,),
        "sae.mean": (thinking,),
    }
    if network is not None:
        shapes |= {
            "coefficient.trunk.weight": (network, base),
            "coefficient.trunk.bias": (network,),
            "coefficient.heads.weight": (latents, network),
            "coefficient.heads.bias": (latents,),
        }
    return shapes


def tensor_faults(manifest: Manifest, tensors: Mapping[str, Any]) -> Iterator[str]:
    """How tensors (of numpy or torch) differ from what the manifest requires, a line each."""
    given = any(name.startswith("coefficient.") for name in tensors)
    trunk = tensors.get("coefficient.trunk.bias")
    width = 0 if trunk is None else math.prod(trunk.shape)  # 0 is never compared: the missing name comes first
    shapes = tensor_shapes(manifest, width if given or manifest.steering.select == "mlp" else None)
    if tensors.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        yield (
            f"tensors differ from the manifest's: missing {missing}, unexpected {extra}; both must name the same; "
            "correct one of them"
        )
    for name, shape in shapes.items():
        if name in tensors:
            yield from _tensor_faults(name, tensors[name], shape)


def _tensor_faults(name: str, tensor: Any, shape: tuple[int, ...]) -> Iterator[str]:
    if tuple(tensor.shape) != shape:
        yield (
            f"tensor {name} has shape {list(tensor.shape)}; the manifest's hidden sizes and latents require "
            f"{list(shape)}; correct one of them"
        )
    if not str(tensor.dtype).endswith("float32"):
        yield f"tensor {name} is {tensor.dtype}; it must be float32; convert it"
        return
    bad = math.prod(tensor.shape) - int((abs(tensor) < math.inf).sum())  # NaN compares as false
    if bad:
        yield (
            f"tensor {name} has {bad} NaN or infinite of {math.prod(tensor.shape)} values; all must be finite; "
            "train or copy the bundle again"
        )


def parse_tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors in the bytes of a safetensors file. Raises HybridError for other bytes, or other than float32."""
    import numpy as np
    import safetensors

    if int.from_bytes(data[:8], "little") > _MAX_HEADER_BYTES:
        raise HybridError(f"the header is larger than {_MAX_HEADER_BYTES:,} bytes, the limit; copy the bundle again")
    try:
        entries = sorted(safetensors.deserialize(data), key=itemgetter(0))  # they come in no fixed order
    except safetensors.SafetensorError as error:
        raise HybridError(f"not a safetensors file ({error}); copy the bundle again") from None
    for name, entry in entries:
        if entry["dtype"] != "F32":
            raise HybridError(f"tensor {name} is {entry['dtype']}; it must be float32; convert it")
        if len(entry["shape"]) > 2 or max(entry["shape"], default=0) > 1 << 24:
            raise HybridError(
                f"tensor {name} has shape {entry['shape']}; it must be a vector or a matrix; copy the bundle again"
            )
    return {name: np.frombuffer(entry["data"], np.float32).reshape(entry["shape"]) for name, entry in entries}


def norm(vector: Any) -> float:
    """L2 norm to six digits, so that a sum's last bits, which differ between machines, reach no manifest."""
    import numpy as np

    return float(f"{np.linalg.norm(np.asarray(vector, dtype=np.float64)):.6g}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Inspection:
    """One pass over a folder. Call `contents` only after `faults` has yielded nothing."""

    def __init__(self, folder: Path, sealed: bool = True) -> None:
        self._folder = folder
        self._sealed = sealed
        self._manifest_sha256 = ""
        self._found: tuple[Manifest, dict[str, np.ndarray]] | None = None

    def contents(self) -> Contents:
        assert self._found is not None
        manifest, tensors = self._found
        return Contents(manifest, self._manifest_sha256, tensors)

    def faults(self) -> Iterator[str]:
        path = self._folder / MANIFEST_FILE
        try:
            data = read_bytes(self._folder)
            self._manifest_sha256 = sha256(data)
            manifest = parse(data, path)
        except HybridError as error:
            cause = error.__cause__
            many = problems(cause) if isinstance(cause, ValidationError) else []
            yield from [f"{path}: {problem}" for problem in many] if len(many) > 1 else [str(error)]
            return
        if self._sealed and TENSORS_FILE not in manifest.files:
            yield (
                f"{self._folder}: files in the manifest are {sorted(manifest.files) or 'none'}; the digest of "
                f"{TENSORS_FILE} must be there; write bundles with Bundle.save"
            )
        left = MAX_BYTES
        for name in manifest.files if self._sealed else (TENSORS_FILE,):
            try:
                data = read_regular(self._folder / name, left)
            except HybridError as error:
                yield str(error)
                continue
            left -= len(data)
            digest, stated = sha256(data), manifest.files.get(name, "")
            if self._sealed and digest != stated:
                yield (
                    f"{self._folder / name}: sha256 is {digest[:12]}...; the manifest states {stated[:12]}...; copy "
                    "the bundle again, or seal it with `behaviors new-version` if you changed it"
                )
            elif name == TENSORS_FILE:
                yield from self._tensor_faults(manifest, data)

    def _tensor_faults(self, manifest: Manifest, data: bytes) -> Iterator[str]:
        path = self._folder / TENSORS_FILE
        try:
            tensors = parse_tensors(data)
        except HybridError as error:
            yield f"{path}: {error}"
            return
        self._found = manifest, tensors
        mismatches = [f"{path}: {fault}" for fault in tensor_faults(manifest, tensors)]
        yield from mismatches
        for behavior in manifest.behaviors if self._sealed and not mismatches else ():
            found = norm(tensors[behavior.tensor])
            if not math.isclose(found, behavior.norm, rel_tol=1e-4, abs_tol=1e-6):
                yield (
                    f"{self._folder}: {behavior.tensor} has norm {found:g}; its manifest states {behavior.norm:g}; "
                    "write bundles with Bundle.save"
                )
