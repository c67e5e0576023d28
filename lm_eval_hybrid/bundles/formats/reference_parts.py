"""Read a vector, an SAE or a taxonomy of the method's research repository, and check it.

- A vector: a dictionary of its category and the tensor [d_base], or the tensor alone.
- Its hyperparameters (JSON): the layer, the norm, which must be right, and how it was trained.
- An SAE: `encoder_weight` [latents, d], `encoder_bias` [latents], `decoder_weight` [latents, d] or [d, latents],
  `b_dec` [d], `topk`, and `activation_mean` [d], which older files lack: it is zero then.
- A taxonomy (JSON): `results_by_cluster_size` holds several namings for each number of latents, of which the one with
  the best `final_score` is taken, or the first; the older `detailed_results` holds one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.contents import MAX_BYTES
from lm_eval_hybrid.bundles.formats import foreign
from lm_eval_hybrid.bundles.formats.foreign import few
from lm_eval_hybrid.bundles.formats.reference_files import SaeFile, VectorFile
from lm_eval_hybrid.bundles.manifest import Index, first_problem
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

_SAE_TENSORS = ("encoder_weight", "encoder_bias", "decoder_weight", "b_dec")
_USUAL_K = 3  # the repository's default
_NORM_TOLERANCE = 1e-3  # relative: norms were taken on other machines, some in other dtypes
_HYPERPARAMETERS_BYTES = 1 << 20
_TAXONOMY_BYTES = 1 << 23  # all numbers of latents of a layer take a megabyte
_EXAMPLES = 3

log = logging.getLogger(__name__)


class Hyperparameters(BaseModel):
    """A vector's training: the fields that are checked here, and any others, which are only recorded."""

    model_config = ConfigDict(frozen=True, extra="allow")

    layer: Index | None = None
    vector_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    steering_type: str = "linear"
    lora_rank: int | None = None
    adaptive_hidden: int | None = None
    seed: int | None = None


class _HyperparameterFile(BaseModel):
    category: str
    hyperparameters: Hyperparameters


class _Detail(BaseModel):
    examples: tuple[str, ...] = ()


class _Naming(BaseModel):
    categories: tuple[tuple[int, str, str], ...] = ()
    final_score: float | None = None
    detailed_results: dict[int, _Detail] = {}


class _Size(BaseModel):
    all_results: tuple[_Naming, ...] = ()
    examples: dict[int, tuple[str, ...]] = {}


@dataclass(frozen=True)
class ReferenceVector:
    """A vector [d_base] float32, and its hyperparameters."""

    file: VectorFile
    values: Tensor
    known: Hyperparameters


@dataclass(frozen=True)
class ReferenceSae:
    """An SAE's tensors by a bundle's names, and its number of latents active at once."""

    k: int
    tensors: dict[str, Tensor]
    mean_is_known: bool


@dataclass(frozen=True)
class LatentWords:
    """A latent's words in a taxonomy."""

    title: str
    description: str = ""
    examples: tuple[str, ...] = ()


def vector(file: VectorFile) -> ReferenceVector:
    """The vector in a file. Raises HybridError if there is none, it is not linear, or its norm is not as stated."""
    known = _hyperparameters(file)
    held = foreign.load_torch(file.path, MAX_BYTES)
    if isinstance(held, dict):
        if file.category not in held:
            keys = few(str(key)[:80] for key in held) or "nothing"
            raise HybridError(f"{file.path}: holds {keys}, not the vector {file.category}; use another file")
        held = held[file.category]
    values = foreign.as_float32(held, f"{file.path}: the vector")
    if values.dim() != 1 or not len(values):
        shape = list(values.shape)
        raise HybridError(f"{file.path}: the vector has shape {shape}; it must have one dimension; use another file")
    norm = float(values.double().norm())
    if known.vector_norm is not None and not math.isclose(norm, known.vector_norm, rel_tol=_NORM_TOLERANCE):
        stated = f"{file.hyperparameters} states {known.vector_norm:g}"
        raise HybridError(f"{file.path}: the vector has norm {norm:g}; {stated}; copy both from the same training")
    return ReferenceVector(file, values, known)


def sae(file: SaeFile) -> ReferenceSae:
    """The SAE in a file. Raises HybridError if tensors are missing, of another shape, or not finite."""
    import torch

    held = foreign.load_torch(file.path, MAX_BYTES)
    if not isinstance(held, dict) or (missing := [name for name in _SAE_TENSORS if name not in held]):
        found = f"no {', '.join(missing)}" if isinstance(held, dict) else f"a value of type {type(held).__name__}"
        raise HybridError(f"{file.path}: holds {found}; an SAE's dictionary of tensors is needed; use another file")
    k = held.get("topk", _USUAL_K)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= file.latents:
        raise HybridError(f"{file.path}: topk is {str(k)[:80]}; it must be 1 to {file.latents}; use another file")
    encoder = _shaped(file, held, "encoder_weight", [(file.latents, None)])
    width = encoder.shape[1]
    decoder = _shaped(file, held, "decoder_weight", [(file.latents, width), (width, file.latents)])
    mean_is_known = held.get("activation_mean") is not None
    if not mean_is_known:
        log.warning("%s: no activation mean, as in older SAEs: residuals are scaled, not centred", file.path)
    tensors = {
        "sae.encoder.weight": encoder,
        "sae.encoder.bias": _shaped(file, held, "encoder_bias", [(file.latents,)]),
        # The repository has a row a latent, a linear layer a column.
        "sae.decoder.weight": decoder.T.contiguous() if decoder.shape == encoder.shape else decoder,
        "sae.decoder.bias": _shaped(file, held, "b_dec", [(width,)]),
        "sae.mean": _shaped(file, held, "activation_mean", [(width,)]) if mean_is_known else torch.zeros(width),
    }
    return ReferenceSae(k, tensors, mean_is_known)


def taxonomy(path: Path, latents: int) -> dict[int, LatentWords]:
    """The words of an SAE of that many latents, by latent; none if the file has no names for that number.

    Raises HybridError if the file has neither form.
    """
    fields = foreign.load_json(path, _TAXONOMY_BYTES)
    try:
        size = _size(fields, str(latents))
    except ValidationError as error:
        problem = f"for {latents} latents: {first_problem(error).removeprefix('manifest: ')}"
        needed = "a taxonomy has categories [id, title, description]"
        raise HybridError(f"{path}: {problem}; {needed}; correct it") from None
    if not size.all_results:
        return {}
    best = max(size.all_results, key=_score)  # the first of equals
    return {
        latent: LatentWords(
            " ".join(title.split()) or f"Category {latent}",
            description.strip(),
            _examples(size.examples.get(latent) or best.detailed_results.get(latent, _Detail()).examples),
        )
        for latent, title, description in best.categories
    }


def _hyperparameters(file: VectorFile) -> Hyperparameters:
    """A vector's hyperparameters. Raises HybridError if they are another vector's, or of one that is not linear."""
    path = file.hyperparameters
    if path is None:
        return Hyperparameters()
    try:
        record = _HyperparameterFile.model_validate(foreign.load_json(path, _HYPERPARAMETERS_BYTES))
    except ValidationError as error:
        problem = first_problem(error)
        raise HybridError(f"{path}: {problem}; a vector's hyperparameters are needed; correct it") from None
    known = record.hyperparameters
    if record.category != file.category:
        raise HybridError(f"{path}: category is {record.category[:80]!r}; it must be {file.category}; copy it again")
    others = {
        "steering_type": None if known.steering_type == "linear" else known.steering_type[:80],
        "lora_rank": known.lora_rank,
        "adaptive_hidden": known.adaptive_hidden,
    }
    for name, value in others.items():
        if value is not None:
            needed = "a bundle needs a linear steering vector, not an adaptive or low-rank one"
            raise HybridError(f"{file.path}: {name} is {value} in {path.name}; {needed}; train it as linear")
    return known


def _shaped(file: SaeFile, held: Mapping[str, Any], name: str, shapes: Sequence[tuple[int | None, ...]]) -> Tensor:
    """A tensor of the SAE, which must have one of the shapes; None in a shape is any size but 0."""
    tensor = foreign.as_float32(held[name], f"{file.path}: {name}")
    for shape in shapes:
        sizes = zip(shape, tensor.shape, strict=False)
        if tensor.dim() == len(shape) and all(found > 0 if size is None else found == size for size, found in sizes):
            return tensor
    texts = [f"[{', '.join('width' if size is None else str(size) for size in shape)}]" for shape in shapes]
    found = f"{name} has shape {list(tensor.shape)}"
    raise HybridError(f"{file.path}: {found}; it must have {' or '.join(texts)}; use another file")


def _size(fields: Mapping[str, Any], latents: str) -> _Size:
    newer, older = (fields.get(name) or {} for name in ("results_by_cluster_size", "detailed_results"))
    if isinstance(newer, dict) and latents in newer:
        return _Size.model_validate(newer[latents])
    if isinstance(older, dict) and latents in older:
        return _Size(all_results=(_Naming.model_validate(older[latents]),))
    return _Size()


def _score(naming: _Naming) -> float:
    score = naming.final_score
    return score if score is not None and math.isfinite(score) else -math.inf


def _examples(sentences: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for sentence in sentences if (text := sentence.strip())))[:_EXAMPLES]
