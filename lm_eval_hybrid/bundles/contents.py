"""What lies in a bundle's folder, checked against its manifest: files, digests, tensors. Needs numpy, never torch.

Everything is checked before it is used, in the order in which one check makes the next one safe: the manifest's size
and form, each file's kind and size, its digest, then the tensors in the very bytes that had the digest. `faults` gives
all that is wrong, `read` raises the first.
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
_MAX_HEADER_BYTES = 1 << 20  # a thousand behaviors take a tenth of it
MAX_BYTES = 1 << 29  # all files of a bundle together; fifteen behaviors of a 32B model take a few million


@dataclass(frozen=True)
class Contents:
    """A sound bundle's parts: its manifest, the manifest's sha256, and the tensors, float32, by name."""

    manifest: Manifest
    manifest_sha256: str
    tensors: dict[str, np.ndarray]


def read(folder: Path) -> Contents:
    """What lies in the folder.

    Raises:
        HybridError: for the first fault, where there is any.
    """
    found = _Inspection(folder)
    for fault in found.faults():
        raise HybridError(fault)
    return found.contents()


def faults(folder: Path) -> list[str]:
    """All that is wrong with the bundle in the folder, a line each; what rests on a fault is not looked at."""
    return list(_Inspection(folder).faults())


def read_unsealed(folder: Path) -> Contents:
    """What lies in a folder whose owner has edited it: neither digests nor norms need be right.

    Raises:
        HybridError: for the first fault that is left.
    """
    found = _Inspection(folder, sealed=False)
    for fault in found.faults():
        raise HybridError(fault)
    return found.contents()


def tensor_shapes(manifest: Manifest, network: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a bundle, by name; `network` is its coefficient network's width, if any."""
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
    """How tensors, of numpy or torch, differ from what the manifest requires; a line each."""
    given = any(name.startswith("coefficient.") for name in tensors)
    trunk = tensors.get("coefficient.trunk.bias")
    width = 0 if trunk is None else math.prod(trunk.shape)  # 0 goes no further: the missing name is reported first
    shapes = tensor_shapes(manifest, width if given or manifest.steering.select == "mlp" else None)
    if tensors.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        yield (
            f"tensors must be exactly those the manifest requires; missing {missing}, unexpected {extra}; "
            "make the tensors and the manifest agree"
        )
    for name, shape in shapes.items():
        if name in tensors:
            yield from _tensor_faults(name, tensors[name], shape)


def _tensor_faults(name: str, tensor: Any, shape: tuple[int, ...]) -> Iterator[str]:
    if tuple(tensor.shape) != shape:
        yield (
            f"tensor {name} must have shape {list(shape)} by the manifest's hidden sizes and latents; "
            f"found {list(tensor.shape)}; make the tensors and the manifest agree"
        )
    if not str(tensor.dtype).endswith("float32"):
        yield f"tensor {name} must be float32; found {tensor.dtype}; convert it"
        return
    bad = math.prod(tensor.shape) - int((abs(tensor) < math.inf).sum())  # NaN is not below anything
    if bad:
        yield (
            f"tensor {name} must be finite; found {bad} NaN or infinite of {math.prod(tensor.shape)} values; "
            "train or copy the bundle again"
        )


def parse_tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors in the bytes of a safetensors file.

    Raises:
        HybridError: where they are not such a file, or one is not float32.
    """
    import numpy as np
    import safetensors

    if int.from_bytes(data[:8], "little") > _MAX_HEADER_BYTES:
        raise HybridError(
            f"the header must have at most {_MAX_HEADER_BYTES:,} bytes; found more; copy the bundle again"
        )
    try:
        entries = sorted(safetensors.deserialize(data), key=itemgetter(0))  # it gives them in no order
    except safetensors.SafetensorError as error:
        raise HybridError(f"must be a safetensors file; found {error}; copy the bundle again") from None
    for name, entry in entries:
        if entry["dtype"] != "F32":
            raise HybridError(f"tensor {name} must be float32; found {entry['dtype']}; convert it")
        if len(entry["shape"]) > 2 or max(entry["shape"], default=0) > 1 << 24:
            raise HybridError(
                f"tensor {name} must be a vector or a matrix; found {entry['shape']}; copy the bundle again"
            )
    return {name: np.frombuffer(entry["data"], np.float32).reshape(entry["shape"]) for name, entry in entries}


def norm(vector: Any) -> float:
    """L2 norm to six digits, so that the last bits of a sum, which differ between machines, reach no manifest."""
    import numpy as np

    return float(f"{np.linalg.norm(np.asarray(vector, dtype=np.float64)):.6g}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Inspection:
    """One look at a folder. `contents` may be asked for once `faults` has ended without any."""

    def __init__(self, folder: Path, sealed: bool = True) -> None:
        self._folder = folder
        self._sealed = sealed
        self._manifest: Manifest | None = None
        self._manifest_sha256 = ""
        self._tensors: dict[str, np.ndarray] = {}

    def contents(self) -> Contents:
        assert self._manifest is not None
        return Contents(self._manifest, self._manifest_sha256, self._tensors)

    def faults(self) -> Iterator[str]:
        yield from self._read_manifest()
        if self._manifest is None:
            return
        if self._sealed:
            yield from self._read_files(self._manifest)
            return
        try:
            data = read_regular(self._folder / TENSORS_FILE, MAX_BYTES)
        except HybridError as error:
            yield str(error)
            return
        yield from self._read_tensors(data)

    def _read_files(self, manifest: Manifest) -> Iterator[str]:
        if TENSORS_FILE not in manifest.files:
            yield (
                f"{self._folder}: the manifest must give the digest of {TENSORS_FILE} under files; found "
                f"{sorted(manifest.files) or 'none'}; write bundles with Bundle.save"
            )
        left = MAX_BYTES
        for name, digest in manifest.files.items():
            path = self._folder / name
            try:
                data = read_regular(path, left)
            except HybridError as error:
                yield str(error)
                continue
            left -= len(data)
            if sha256(data) != digest:
                yield (
                    f"{path}: the manifest requires sha256 {digest[:12]}...; found {sha256(data)[:12]}...; "
                    "copy the bundle again, or seal it with `behaviors new-version` if the change is yours"
                )
            elif name == TENSORS_FILE:
                yield from self._read_tensors(data)

    def _read_manifest(self) -> Iterator[str]:
        try:
            data = read_bytes(self._folder)
        except HybridError as error:
            yield str(error)
            return
        path = self._folder / MANIFEST_FILE
        self._manifest_sha256 = sha256(data)
        try:
            self._manifest = parse(data, path)
        except HybridError as error:
            cause = error.__cause__
            many = problems(cause) if isinstance(cause, ValidationError) else []
            yield from [f"{path}: {problem}" for problem in many] if len(many) > 1 else [str(error)]

    def _read_tensors(self, data: bytes) -> Iterator[str]:
        assert self._manifest is not None
        path = self._folder / TENSORS_FILE
        try:
            self._tensors = parse_tensors(data)
        except HybridError as error:
            yield f"{path}: {error}"
            return
        mismatches = [f"{path}: {fault}" for fault in tensor_faults(self._manifest, self._tensors)]
        yield from mismatches
        if self._sealed and not mismatches:
            yield from self._norm_faults()

    def _norm_faults(self) -> Iterator[str]:
        assert self._manifest is not None
        for behavior in self._manifest.behaviors:
            found = norm(self._tensors[behavior.tensor])
            if not math.isclose(found, behavior.norm, rel_tol=1e-4, abs_tol=1e-6):
                yield (
                    f"{self._folder}: {behavior.tensor} must have the norm its manifest gives, {behavior.norm:g}; "
                    f"found {found:g}; write bundles with Bundle.save"
                )
