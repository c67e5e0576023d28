"""Any folder of safetensors files as a bundle, by a file `mapping.yaml` that says where each tensor of the bundle is.

    tensors:
      bias: {file: vectors.safetensors, tensor: mean_shift}
      vector.check: {file: vectors.safetensors, tensor: directions, row: 3}
      vector.plan: {file: vectors.safetensors, tensor: directions, row: 5}
      sae.encoder.weight: {file: sae.safetensors, tensor: W_enc, transpose: true}
      sae.encoder.bias: {file: sae.safetensors, tensor: b_enc}
    behaviors:
      - {key: check, latent: 3, title: Checking, description: Goes over a result., examples: ["Wait, is that so?"]}
      - {key: plan, latent: 5, title: Planning}
    steering: {layer: 10, coefficients: [0.5, 1.0], windows: [1, 0]}
    sae: {layer: 4, latents: 15, k: 3}

A location is a file beside the mapping, a tensor's name in it and, for a matrix, a `row` or a `column` (from 0), or
`transpose: true`. The tensors are those of `Bundle`, with `vector.<key>` for every behavior; steering and sae are a
manifest's. float16, bfloat16 and float64 become float32. Optional are `bias`, `sae.encoder.bias`, `sae.decoder.bias`
and `sae.mean`, zero by default, and `sae.decoder.weight`, by default the encoder's transpose: decoding does not use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.bundles.contents import MAX_BYTES, sha256
from lm_eval_hybrid.bundles.formats import foreign
from lm_eval_hybrid.bundles.formats.foreign import few
from lm_eval_hybrid.bundles.manifest import KEY_PATTERN, FileName, Index, SaeSpec, SteeringSpec, Words, first_problem
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ImportOptions

MAPPING_FILE = "mapping.yaml"
_ENCODER = "sae.encoder.weight"
_DECODER = "sae.decoder.weight"
_OPTIONAL = ("bias", "sae.encoder.bias", _DECODER, "sae.decoder.bias", "sae.mean")
_NETWORK = tuple(f"coefficient.{part}.{kind}" for part in ("trunk", "heads") for kind in ("weight", "bias"))

log = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Location(_Part):
    """Where a tensor is: a whole tensor of a file, its transpose, or a row or column of it."""

    file: FileName
    tensor: Words
    row: Index | None = None
    column: Index | None = None
    transpose: bool = False

    @model_validator(mode="after")
    def _check(self) -> _Location:
        parts = {"row": self.row is not None, "column": self.column is not None, "transpose": self.transpose}
        given = [name for name, is_given in parts.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        return self


class _Behavior(_Part):
    """A behavior of a manifest, without the tensor's name and norm, which follow from the rest."""

    key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=100)]
    latent: Index
    title: Words
    description: str = ""
    examples: tuple[str, ...] = ()


class _Mapping(_Part):
    tensors: dict[str, _Location]
    behaviors: Annotated[tuple[_Behavior, ...], Field(min_length=1)]
    steering: SteeringSpec
    sae: SaeSpec


def read(source: Path, options: ImportOptions) -> Bundle:
    """The bundle that the mapping in the folder `source` describes.

    Args:
        options: `latents` chooses among the behaviors; layers, if given, must be the mapping's.

    Raises HybridError if the mapping is unsound, a tensor is not where it says, or they form no bundle.
    """
    path = source / MAPPING_FILE
    mapping = _parse(path)
    for name, stated, given in (
        ("layer", mapping.steering.layer, options.layer),
        ("sae_layer", mapping.sae.layer, options.sae_layer),
    ):
        if given not in (None, stated):
            needed = "they must agree; drop the option, or correct the mapping"
            raise HybridError(f"{path}: {name} is {stated}, not {given}; {needed}")
    latents = foreign.chosen(path, options.latents, [behavior.latent for behavior in mapping.behaviors])
    behaviors = [behavior for behavior in mapping.behaviors if behavior.latent in latents]
    keys = {f"vector.{behavior.key}" for behavior in behaviors}
    locations = {name: at for name, at in mapping.tensors.items() if name in keys or not name.startswith("vector.")}
    digests: dict[str, str] = {}
    tensors = dict(_tensors(source, locations, digests))
    _fill_in(path, mapping, tensors)
    files = ", ".join(f"{name} (sha256 {digest})" for name, digest in digests.items())
    return options.bundle(
        tensors,
        behaviors=[{**behavior.model_dump(), "tensor": f"vector.{behavior.key}"} for behavior in behaviors],
        steering=mapping.steering.model_dump(),
        sae=mapping.sae.model_dump(),
        source=f"{MAPPING_FILE} and {files}",
        description=f"The tensors of {', '.join(digests)}, as {MAPPING_FILE} of {source.resolve().name} names them.",
    )


def _parse(path: Path) -> _Mapping:
    fields = strict_yaml.load(read_regular(path, strict_yaml.MAX_BYTES), f"{path}: the mapping", "correct it")
    try:
        mapping = _Mapping.model_validate(fields)
    except ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; correct it") from None
    needed = [*(f"vector.{behavior.key}" for behavior in mapping.behaviors), _ENCODER]
    missing = sorted(set(needed) - mapping.tensors.keys())
    unknown = sorted(mapping.tensors.keys() - {*needed, *_OPTIONAL, *_NETWORK})
    if missing or unknown:
        found = f"missing {few(missing) or 'none'}, unknown {few(unknown) or 'none'}"
        raise HybridError(f"{path}: tensors differ from a bundle's: {found}; correct the names")
    return mapping


def _tensors(source: Path, locations: Mapping[str, _Location], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The located tensors, float32, by name; adds the sha256 of each file that is read to `digests`."""
    left, total = MAX_BYTES, 0
    for file in dict.fromkeys(at.file for at in locations.values()):
        path = source / file
        data = read_regular(path, left)
        left -= len(data)
        digests[file] = sha256(data)
        held = foreign.load_safetensors(path, data)
        for name, at in locations.items():
            if at.file == file:
                tensor = _at(path, name, at, held)
                total += tensor.numel() * tensor.element_size()
                if total > MAX_BYTES:
                    raise HybridError(f"{path}: tensors are larger than a bundle's {MAX_BYTES:,} bytes; name fewer")
                yield name, tensor


def _at(path: Path, name: str, at: _Location, held: Mapping[str, Tensor]) -> Tensor:
    what, advice = f"{path}: {at.tensor} for {name}", f"correct {MAPPING_FILE}"
    if at.tensor not in held:
        raise HybridError(f"{what} is missing; the file has {few(held) or 'no tensors'}; {advice}")
    found = held[at.tensor]
    if at.transpose or at.row is not None or at.column is not None:
        if found.dim() != 2:
            raise HybridError(f"{what} has shape {list(found.shape)}; only a matrix has rows and columns; {advice}")
        for which, index, size in (("row", at.row, found.shape[0]), ("column", at.column, found.shape[1])):
            if index is not None and index >= size:
                raise HybridError(f"{what} has {size} {which}s, from 0; it must have a {which} {index}; {advice}")
        found = found[at.row] if at.row is not None else found.T if at.column is None else found[:, at.column]
    dimensions = 2 if name.endswith(".weight") else 1
    if found.dim() != dimensions or not found.numel():
        form = "matrix" if dimensions == 2 else "vector (such as a row or column of a matrix)"
        raise HybridError(f"{what} has shape {list(found.shape)}; it must be a {form}; {advice}")
    return foreign.as_float32(found, what)


def _fill_in(path: Path, mapping: _Mapping, tensors: dict[str, Tensor]) -> None:
    """Add the optional tensors that are missing. Raises HybridError if shapes disagree."""
    import torch

    encoder = tensors[_ENCODER]
    latents, width = encoder.shape
    if latents != mapping.sae.latents:
        needed = f"it must have one for each of {mapping.sae.latents} latents"
        raise HybridError(
            f"{path}: {_ENCODER} has {latents} rows of {width}; {needed}; transpose it, or correct latents"
        )
    base = next(len(tensor) for name, tensor in tensors.items() if name.startswith("vector."))
    shapes = {
        "bias": (base,),
        **{name: (base,) for name in tensors if name.startswith("vector.")},
        "sae.encoder.bias": (latents,),
        _DECODER: (width, latents),
        "sae.decoder.bias": (width,),
        "sae.mean": (width,),
    }
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            found, needed = list(tensors[name].shape), f"the first vector and the encoder require {list(shape)}"
            raise HybridError(f"{path}: {name} has shape {found}; {needed}; correct its location")
    if _DECODER not in tensors:
        tensors[_DECODER] = encoder.T.contiguous()
        log.warning("%s: no %s: the encoder's transpose is used; decoding does not read it", path, _DECODER)
    if zero := [name for name in shapes if name not in tensors]:
        tensors.update({name: torch.zeros(shapes[name]) for name in zero})
        log.warning("%s: zero, since the mapping leaves them out: %s", path, ", ".join(zero))
