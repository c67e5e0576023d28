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

A place is a file beside the mapping, a tensor's name in it, and, of a matrix, a `row` or a `column`, counted from 0, or
`transpose: true`. The tensors are those of `Bundle`, with `vector.<key>` for every behavior; steering and sae are a
manifest's. float16, bfloat16 and float64 become float32. These may be left out: `bias`, `sae.encoder.bias`,
`sae.decoder.bias` and `sae.mean`, which are zero then, and `sae.decoder.weight`, for which the encoder's transpose
stands then: decoding does not use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.bundles.contents import MAX_BYTES, sha256
from lm_eval_hybrid.bundles.formats import torch_file
from lm_eval_hybrid.bundles.formats.direction import few
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


class _Place(_Part):
    """Where a tensor is: all of one in a file, its transpose, or a row or column of it."""

    file: FileName
    tensor: Words
    row: Index | None = None
    column: Index | None = None
    transpose: bool = False

    @model_validator(mode="after")
    def _check(self) -> _Place:
        parts = {"row": self.row is not None, "column": self.column is not None, "transpose": self.transpose}
        given = [name for name, is_given in parts.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"one of row, column and transpose at most; found {' and '.join(given)}")
        return self


class _Behavior(_Part):
    """A behavior of a manifest, whose tensor's name follows from the key and whose norm from the tensor."""

    key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=100)]
    latent: Index
    title: Words
    description: str = ""
    examples: tuple[str, ...] = ()


class _Mapping(_Part):
    tensors: dict[str, _Place]
    behaviors: Annotated[tuple[_Behavior, ...], Field(min_length=1)]
    steering: SteeringSpec
    sae: SaeSpec


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The bundle that the mapping in the folder `source` describes.

    Args:
        wanted: `latents` chooses among the behaviors; a layer given there must be the mapping's.

    Raises:
        HybridError: where the mapping is not sound, a tensor is not where it says, or they do not make a bundle.
    """
    path = source / MAPPING_FILE
    if not path.exists():
        raise HybridError(
            f"{source}: must hold a {MAPPING_FILE}; found none; write one, see this format's documentation"
        )
    mapping = _parse(path)
    for name, stated, asked in (
        ("layer", mapping.steering.layer, wanted.layer),
        ("sae_layer", mapping.sae.layer, wanted.sae_layer),
    ):
        if asked not in (None, stated):
            raise HybridError(
                f"{path}: {name} is {stated} there; found {asked} asked for; leave it out, or mend the mapping"
            )
    behaviors = _chosen(path, mapping, wanted.latents)
    keys = {f"vector.{behavior.key}" for behavior in behaviors}
    places = {name: place for name, place in mapping.tensors.items() if name in keys or not name.startswith("vector.")}
    digests: dict[str, str] = {}
    tensors = dict(_tensors(source, places, digests))
    _fill(path, mapping, tensors)
    files = ", ".join(f"{name} (sha256 {digest})" for name, digest in digests.items())
    return wanted.bundle(
        tensors,
        behaviors=[{**behavior.model_dump(), "tensor": f"vector.{behavior.key}"} for behavior in behaviors],
        steering=mapping.steering.model_dump(),
        sae=mapping.sae.model_dump(),
        source=f"{MAPPING_FILE} and {files}",
        description=f"The tensors of {', '.join(digests)}, as {MAPPING_FILE} of {source.resolve().name} names them.",
    )


def _parse(path: Path) -> _Mapping:
    fields = strict_yaml.load(read_regular(path, strict_yaml.MAX_BYTES), f"{path}: a mapping", "mend it")
    try:
        mapping = _Mapping.model_validate(fields)
    except ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; mend it") from None
    needed = [*(f"vector.{behavior.key}" for behavior in mapping.behaviors), _ENCODER]
    missing = sorted(set(needed) - mapping.tensors.keys())
    unknown = sorted(mapping.tensors.keys() - {*needed, *_OPTIONAL, *_NETWORK})
    if missing or unknown:
        raise HybridError(
            f"{path}: tensors must be those of a bundle; missing {few(missing) or 'none'}, unknown "
            f"{few(unknown) or 'none'}; mend the names"
        )
    return mapping


def _chosen(path: Path, mapping: _Mapping, latents: tuple[int, ...] | None) -> list[_Behavior]:
    if latents is None:
        return list(mapping.behaviors)
    named = [behavior.latent for behavior in mapping.behaviors]
    missing = [str(latent) for latent in latents if latent not in named]
    if missing or not latents:
        raise HybridError(
            f"{path}: every latent that is asked for needs a behavior, and one must be; found none for "
            f"{few(missing) or 'no latent'}; ask for some of {few(named)}"
        )
    return [behavior for behavior in mapping.behaviors if behavior.latent in latents]


def _tensors(source: Path, places: Mapping[str, _Place], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors at the places, float32, by name; the sha256 of each file that is read goes into `digests`."""
    import safetensors
    from safetensors.torch import load

    left, made = MAX_BYTES, 0
    for file in dict.fromkeys(place.file for place in places.values()):
        path = source / file
        if not path.exists():
            raise HybridError(f"{path}: {MAPPING_FILE} names this file; found none; copy it there, or mend the mapping")
        data = read_regular(path, left)
        left -= len(data)
        digests[file] = sha256(data)
        try:
            held = load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise HybridError(
                f"{path}: must be a safetensors file; found {' '.join(str(error).split())[:120]}; copy it again"
            ) from None
        for name, place in places.items():
            if place.file == file:
                tensor = _at(path, name, place, held)
                made += tensor.numel() * tensor.element_size()
                if made > MAX_BYTES:
                    raise HybridError(f"{path}: tensors must have at most {MAX_BYTES:,} bytes; found more; name fewer")
                yield name, tensor


def _at(path: Path, name: str, place: _Place, held: Mapping[str, Tensor]) -> Tensor:
    what = f"{path}: {place.tensor} for {name}"
    if place.tensor not in held:
        raise HybridError(
            f"{path}: must hold {place.tensor} for {name}; found {few(held) or 'no tensors'}; mend {MAPPING_FILE}"
        )
    found = held[place.tensor]
    if place.transpose or place.row is not None or place.column is not None:
        if found.dim() != 2:
            raise HybridError(f"{what} must be a matrix; found shape {list(found.shape)}; take all of it")
        for which, index, size in (("row", place.row, found.shape[0]), ("column", place.column, found.shape[1])):
            if index is not None and index >= size:
                raise HybridError(
                    f"{what} must have a {which} {index}; found {size}, counted from 0; mend {MAPPING_FILE}"
                )
        if place.row is not None:
            found = found[place.row]
        else:
            found = found.T if place.column is None else found[:, place.column]
    dimensions = 2 if name.endswith(".weight") else 1
    if found.dim() != dimensions or not found.numel():
        form = "matrix" if dimensions == 2 else "vector (a row or a column of a matrix is one)"
        raise HybridError(f"{what} must be a {form}; found shape {list(found.shape)}; mend {MAPPING_FILE}")
    return torch_file.as_float32(found, what)


def _fill(path: Path, mapping: _Mapping, tensors: dict[str, Tensor]) -> None:
    """Add what may be left out. HybridError where the shapes do not agree."""
    import torch

    encoder = tensors[_ENCODER]
    latents, width = encoder.shape
    if latents != mapping.sae.latents:
        raise HybridError(
            f"{path}: sae.encoder.weight must have a row for each of {mapping.sae.latents} latents; found {latents} "
            f"rows of {width}; set transpose where it has columns, or mend sae.latents"
        )
    base = next(len(tensor) for name, tensor in tensors.items() if name.startswith("vector."))
    shapes = {
        "bias": (base,),
        **{name: (base,) for name in tensors if name.startswith("vector.")},
        "sae.encoder.bias": (latents,),
        "sae.decoder.weight": (width, latents),
        "sae.decoder.bias": (width,),
        "sae.mean": (width,),
    }
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise HybridError(
                f"{path}: {name} must have shape {list(shape)}, by the first vector and the encoder; found "
                f"{list(tensors[name].shape)}; mend its place"
            )
    if _DECODER not in tensors:
        tensors[_DECODER] = encoder.T.contiguous()
        log.warning("%s: no %s: the encoder's transpose stands for it; decoding does not use it", path, _DECODER)
    if zero := [name for name in shapes if name not in tensors]:
        tensors.update({name: torch.zeros(shapes[name]) for name in zero})
        log.warning("%s: zero, since they are left out: %s", path, ", ".join(zero))
