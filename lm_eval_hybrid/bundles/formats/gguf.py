"""Control vectors of llama.cpp and repeng: a GGUF file of architecture `controlvector` with tensors `direction.N`.

N counts layers from 0, as a bundle does: the direction is added to what layer N puts out (repeng wraps layer N of the
model's list; llama.cpp adds after block `il` = N). llama.cpp has none for layer 0 and refuses a file that does.

Files are read here and not by the package gguf, whose reader follows whatever lengths a file claims, far beyond its
end: a few bytes would keep it busy for ever. Of the format only what a control vector needs is read.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles.formats import direction
from lm_eval_hybrid.bundles.formats.direction import Direction
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    import numpy as np

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

ARCHITECTURE = "controlvector"
_MAX_BYTES = 1 << 26  # directions for every layer of the largest models take a tenth of it
_MAX_COUNT = 1 << 10  # of keys, and of tensors
_MAX_TEXT = 1 << 16
_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
# Types of values by number: how struct reads one, except text and arrays.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_FLOATS = {0: "<f4", 1: "<f2"}  # types of tensors by number: F32, F16


@dataclass(frozen=True)
class ControlVector:
    """What a file holds: `directions` by layer, [d] float32 each; `hint` of the model, empty where there is none."""

    hint: str
    directions: Mapping[int, np.ndarray]


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The bundle of one direction, the one for `wanted.layer` where there are several.

    It is steered always, at all positions, with coefficient 1: the file leaves the strength to who uses it.

    Raises:
        HybridError: where the file is not sound, or no direction of it fits.
    """
    import torch

    found = parse(source, files.read_regular(source, _MAX_BYTES))
    name = direction.pick(source, {f"direction.{layer}": layer for layer in found.directions}, wanted.layer)
    layer = int(name.partition(".")[2])
    vector = direction.vector_of(torch.from_numpy(found.directions[layer]), f"{source}: {name}")
    of = f" of a model of type {found.hint}" if found.hint else ""
    description = f"The control vector {source.name}{of}, added after layer {layer}."
    return direction.bundle_of(
        Direction(layer, vector, 1.0),
        wanted,
        "Control vector",
        description,
        f"{source.name}, {name}: control vector, GGUF",
    )


def write(bundle: Bundle, chosen: ExportOptions, target: Path) -> list[str]:
    """Write coefficient * (bias + vector) of one behavior as a control vector; what is lost, a line each.

    Raises:
        HybridError: where something is at `target`, the bundle steers after layer 0, or the package gguf is missing.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise HybridError(
            "writing control vectors needs the package gguf; found none; pip install 'lm-eval-hybrid[gguf]'"
        ) from None
    direction.check_new(target)
    found = direction.choose(bundle, chosen)
    if found.layer == 0:
        raise HybridError(
            "a control vector must be for layer 1 or a later one, since llama.cpp refuses one for layer 0; "
            "found steering.layer 0; export a steered file"
        )
    hint = model_type(bundle.manifest.base.architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, target.name)
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        writer.add_tensor(f"direction.{found.layer}", (found.coefficient * found.vector).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.write_file(target, path.read_bytes())
    lost = direction.lost(bundle, found)
    lost.append(f"the coefficient {found.coefficient:g} as a number: it is in the direction, to be used with scale 1")
    if hint is None:
        lost.append("the base's type, which repeng compares when it combines vectors: the hint is unknown")
    return lost


def model_type(architecture: str | None) -> str | None:
    """transformers' name of a model type, such as `qwen2` for Qwen2ForCausalLM; None where it is not known."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architecture is None or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return architecture  # a model built in code is known by its type
    types = [type for type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture]
    # Several share a class at times: gpt-sw3 and gpt2.
    own = [type for type in types if architecture.lower().startswith(type.replace("_", ""))]
    return next(iter(own or types), None)


def parse(source: Path, data: bytes) -> ControlVector:
    """The control vector in a GGUF file's bytes.

    Raises:
        HybridError: where there is none, or the file is broken; one line that begins with `source`.
    """
    try:
        return _File(data).control_vector()
    except _Broken as error:
        raise HybridError(f"{source}: must be a control vector's GGUF file; found {error}; export it again") from None


class _Broken(Exception):
    """What is wrong with a file, in a few words."""


class _File:
    """A GGUF file's bytes, read once from the front. Nothing is read, or made room for, beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def control_vector(self) -> ControlVector:
        if self._take(4) != b"GGUF":
            raise _Broken("a file of another kind")
        version = self._number("I")
        if version not in (2, 3):
            raise _Broken(f"version {version}, of which 2 and 3 are known (and no big-endian ones)")
        tensors, keys = self._count("tensors"), self._count("keys")
        fields = dict(self._field() for _ in range(keys))
        if fields.get("general.architecture") != ARCHITECTURE:
            raise _Broken(
                f"general.architecture {str(fields.get('general.architecture'))[:80]!r}, not {ARCHITECTURE!r}"
            )
        entries = [self._tensor() for _ in range(tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (1 << power for power in range(3, 17)):
            raise _Broken(f"an alignment of {str(alignment)[:80]}")
        start = -(-self._at // alignment) * alignment
        # Tensors that share bytes would become many times the file.
        if sum(4 * math.prod(shape) for _, shape, _, _ in entries) > 2 * len(self._data):
            raise _Broken("tensors that are larger than the file")
        directions: dict[int, np.ndarray] = {}
        for name, shape, kind, offset in entries:
            if found := _NAME.fullmatch(name):
                if int(found[1]) in directions:
                    raise _Broken(f"{name} twice")
                directions[int(found[1])] = self._vector(name, shape, kind, start + offset)
        if not directions:
            raise _Broken("no tensor direction.N")
        return ControlVector(str(fields.get(f"{ARCHITECTURE}.model_hint", ""))[:100], directions)

    def _vector(self, name: str, shape: tuple[int, ...], kind: int, at: int) -> np.ndarray:
        import numpy as np

        if kind not in _FLOATS or len(shape) != 1:
            raise _Broken(f"{name} of type {kind} and shape {list(shape)}, not one dimension of F32 or F16")
        dtype = np.dtype(_FLOATS[kind])
        if at + shape[0] * dtype.itemsize > len(self._data):
            raise _Broken(f"{name} of {shape[0]:,} values, which end beyond the file")
        return np.frombuffer(self._data, dtype, shape[0], at).astype(np.float32)

    def _field(self) -> tuple[str, object]:
        name, kind = self._text(), self._number("I")
        if kind == _TEXT:
            return name, self._text()
        if kind != _ARRAY:
            return name, self._number(self._scalar(kind))
        kind, length = self._number("I"), self._number("Q")
        if kind == _TEXT:
            if length > _MAX_TEXT:
                raise _Broken(f"a list of {length:,} texts")
            for _ in range(length):
                self._text()
        else:
            self._take(length * struct.calcsize(self._scalar(kind)))
        return name, None  # no list says anything of a control vector

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _Broken(f"a value of type {kind}")
        return _SCALARS[kind]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset among the tensors' data)."""
        name, dimensions = self._text(), self._number("I")
        if dimensions > 4:
            raise _Broken(f"a tensor of {dimensions:,} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, shape, self._number("I"), self._number("Q")

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > _MAX_COUNT:
            raise _Broken(f"{count:,} {what}")
        return count

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MAX_TEXT:
            raise _Broken(f"a text of {length:,} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0]

    def _take(self, length: int) -> bytes:
        taken = self._data[self._at : self._at + length]
        if len(taken) < length:
            raise _Broken("a file that ends too early")
        self._at += length
        return taken
