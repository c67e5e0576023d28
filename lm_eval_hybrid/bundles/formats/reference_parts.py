"""One vector and one SAE of the method's research repository: read, and checked against what is said of them.

- a vector: a dictionary of its category and the tensor [d_base], or the tensor alone;
- its hyperparameters: the layer, the norm, which must be right, and how it was trained;
- an SAE: `encoder_weight` [latents, d], `encoder_bias` [latents], `decoder_weight` [latents, d] or [d, latents],
  `b_dec` [d], `topk`, and `activation_mean` [d], which older ones lack: it is zero then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.contents import MAX_BYTES
from lm_eval_hybrid.bundles.formats import torch_file
from lm_eval_hybrid.bundles.formats.direction import few
from lm_eval_hybrid.bundles.formats.reference_files import SaeFile, VectorFile, json_object
from lm_eval_hybrid.bundles.manifest import Index, first_problem
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

_SAE_TENSORS = ("encoder_weight", "encoder_bias", "decoder_weight", "b_dec")
_USUAL_K = 3  # what the repository takes where an SAE does not say
_NORM_TOLERANCE = 1e-3  # relative: the norms were taken on other machines, some in other dtypes
_HYPERPARAMETERS_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Hyperparameters(BaseModel):
    """Of one vector: what is checked here, and anything else, which is only recorded."""

    model_config = ConfigDict(frozen=True, extra="allow")

    layer: Index | None = None
    vector_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    steering_type: str = "linear"
    lora_rank: int | None = None
    adaptive_hidden: int | None = None
    seed: int | None = None


class _Record(BaseModel):
    category: str
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class ReferenceVector:
    """A vector [d_base] float32, the latent it belongs to (None for the bias), and what is known of its making."""

    file: VectorFile
    latent: int | None
    values: Tensor
    known: Hyperparameters


@dataclass(frozen=True)
class ReferenceSae:
    """An SAE's tensors by the names of a bundle, and how many of its latents were active at once."""

    file: SaeFile
    k: int
    tensors: dict[str, Tensor]
    mean_is_known: bool


def vector(file: VectorFile) -> ReferenceVector:
    """The vector in a file.

    Raises:
        HybridError: where it is none, not a linear one, or does not have the norm stated.
    """
    known = _hyperparameters(file)
    held = torch_file.load(file.path, MAX_BYTES)
    if isinstance(held, dict):
        if file.category not in held:
            keys = few(str(key)[:80] for key in held) or "nothing"
            raise HybridError(f"{file.path}: must hold the vector {file.category}; found {keys}; use another file")
        held = held[file.category]
    values = torch_file.as_float32(held, f"{file.path}: the vector")
    if values.dim() != 1 or not len(values):
        raise HybridError(
            f"{file.path}: the vector must have one dimension, the base's width; found shape {list(values.shape)}; "
            "use another file"
        )
    norm = float(values.double().norm())
    if known.vector_norm is not None and not math.isclose(norm, known.vector_norm, rel_tol=_NORM_TOLERANCE):
        raise HybridError(
            f"{file.path}: the vector must have the norm that {file.hyperparameters} states, {known.vector_norm:g}; "
            f"found {norm:g}; copy both from the same training"
        )
    return ReferenceVector(file, file.latent, values, known)


def sae(file: SaeFile) -> ReferenceSae:
    """The SAE in a file.

    Raises:
        HybridError: where tensors are missing, of another shape, or not finite.
    """
    import torch

    held = torch_file.load(file.path, MAX_BYTES)
    if not isinstance(held, dict) or (missing := [name for name in _SAE_TENSORS if name not in held]):
        found = f"no {', '.join(missing)}" if isinstance(held, dict) else type(held).__name__
        raise HybridError(f"{file.path}: must be a dictionary with an SAE's tensors; found {found}; use another file")
    k = held.get("topk", _USUAL_K)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= file.latents:
        raise HybridError(f"{file.path}: topk must be 1 to {file.latents}; found {str(k)[:80]}; use another file")
    encoder = _shaped(file, held, "encoder_weight", [(file.latents, None)])
    width = encoder.shape[1]
    decoder = _shaped(file, held, "decoder_weight", [(file.latents, width), (width, file.latents)])
    mean_is_known = held.get("activation_mean") is not None
    if not mean_is_known:
        log.warning("%s: no activation mean, which older SAEs lack: residuals are scaled, not centred", file.path)
    tensors = {
        "sae.encoder.weight": encoder,
        "sae.encoder.bias": _shaped(file, held, "encoder_bias", [(file.latents,)]),
        # The repository has a row a latent, a linear layer a column.
        "sae.decoder.weight": decoder.T.contiguous() if decoder.shape == encoder.shape else decoder,
        "sae.decoder.bias": _shaped(file, held, "b_dec", [(width,)]),
        "sae.mean": _shaped(file, held, "activation_mean", [(width,)]) if mean_is_known else torch.zeros(width),
    }
    return ReferenceSae(file, k, tensors, mean_is_known)


def _hyperparameters(file: VectorFile) -> Hyperparameters:
    """What is known of a vector's making. HybridError where it is no linear one, or another's."""
    path = file.hyperparameters
    if path is None:
        return Hyperparameters()
    try:
        record = _Record.model_validate(json_object(path, _HYPERPARAMETERS_BYTES))
    except ValidationError as error:
        raise HybridError(f"{path}: must be the hyperparameters of a vector; {first_problem(error)}; mend it") from None
    known = record.hyperparameters
    if record.category != file.category:
        raise HybridError(f"{path}: category must be {file.category}; found {record.category[:80]!r}; copy it again")
    other_types = {
        "steering_type": None if known.steering_type == "linear" else known.steering_type[:80],
        "lora_rank": known.lora_rank,
        "adaptive_hidden": known.adaptive_hidden,
    }
    for name, value in other_types.items():
        if value is not None:
            raise HybridError(
                f"{file.path}: must be a linear steering vector, not an adaptive or low-rank one; found {name} {value} "
                f"in {path.name}; train it with steering_type linear"
            )
    return known


def _shaped(file: SaeFile, held: Mapping[str, Any], name: str, shapes: Sequence[tuple[int | None, ...]]) -> Tensor:
    """A tensor of the SAE, which must have one of the shapes; None in a shape is any number but 0."""
    tensor = torch_file.as_float32(held[name], f"{file.path}: {name}")
    for shape in shapes:
        sizes = zip(shape, tensor.shape, strict=False)
        if tensor.dim() == len(shape) and all(found > 0 if size is None else found == size for size, found in sizes):
            return tensor
    texts = [f"[{', '.join('width' if size is None else str(size) for size in shape)}]" for shape in shapes]
    raise HybridError(
        f"{file.path}: {name} must have shape {' or '.join(texts)}; found {list(tensor.shape)}; use another file"
    )
