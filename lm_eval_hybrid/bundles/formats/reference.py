"""The files of the method's research repository (arXiv 2510.07364) as a bundle.

A folder may hold the files of several pairs, layers and numbers of latents. `reference_files` says which belong
together, `reference_parts` what they hold, `taxonomy` what the latents are called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import reference_files, reference_parts, taxonomy
from lm_eval_hybrid.bundles.formats.direction import few
from lm_eval_hybrid.bundles.formats.reference_parts import ReferenceSae, ReferenceVector
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ImportOptions

# What the repository's runs for the paper's table try at each position: every coefficient over every window.
COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WINDOWS = (1, 15, 50, 100, 0)
CITATION = (
    "Constantin Venhoff, Iván Arcuschin, Philip Torr, Arthur Conmy, Neel Nanda: Base Models Know How to Reason, "
    "Thinking Models Learn When. arXiv:2510.07364."
)


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The bundle of the pair `wanted.base` and `wanted.thinking`, from a folder of the layout.

    Args:
        wanted: `layer` chooses among vectors of several layers, `sae_layer` among SAEs, `latents` among vectors.

    Raises:
        HybridError: where files are missing, ambiguous, of another kind, or do not fit each other or the models.
    """
    files = reference_files.listing(source)
    base, thinking = reference_files.called(wanted.base), reference_files.called(wanted.thinking)
    found = [reference_parts.vector(file) for file in reference_files.vectors(source, files, base, thinking)]
    layer, bias, vectors = _at_one_layer(source, found, wanted.layer)
    _check_widths(bias, vectors.values())
    sae_file = reference_files.sae(source, files, thinking, max(vectors) + 1, wanted.sae_layer)
    sae = reference_parts.sae(sae_file)
    words = taxonomy.read(sae_file.taxonomy, sae_file.latents) if sae_file.taxonomy else {}
    chosen = _chosen(source, vectors, wanted.latents)
    named = {f"vector.{vector.file.category}": vector.values for vector in chosen.values()}
    common, own = _known([bias, *chosen.values()])
    return wanted.bundle(
        {"bias": bias.values, **named, **sae.tensors},
        behaviors=[_behavior(latent, vector, words) for latent, vector in chosen.items()],
        steering={"layer": layer, "coefficients": COEFFICIENTS, "windows": WINDOWS},
        sae={"layer": sae_file.layer, "latents": sae_file.latents, "k": sae.k},
        source=_recipe(common, own, sae),
        description=f"Vectors of {base} and an SAE of {thinking}, from the files of the method's research repository.",
        citation=CITATION,
        seed=common.get("seed"),
    )


def _at_one_layer(
    source: Path, found: Sequence[ReferenceVector], wanted: int | None
) -> tuple[int, ReferenceVector, dict[int, ReferenceVector]]:
    """The layer, the bias, and the vectors by latent, of those that were trained for the layer or do not say."""
    layers = sorted({vector.known.layer for vector in found if vector.known.layer is not None})
    if wanted is None and len(layers) == 1:
        wanted = layers[0]
    if wanted is None or (layers and wanted not in layers):
        stated = ", ".join(map(str, layers)) or "none stated"
        asked = "" if wanted is None else f", and {wanted} asked for"
        raise HybridError(
            f"{source}: needs the one layer that is steered; found {stated}{asked}; choose it with --layer"
        )
    kept = [vector for vector in found if vector.known.layer in (None, wanted)]
    vectors = {vector.latent: vector for vector in kept if vector.latent is not None}
    biases = [vector for vector in kept if vector.latent is None]
    if not biases or not vectors:
        names = few(vector.file.category for vector in kept)
        raise HybridError(
            f"{source}: needs the bias vector and that of a behavior, trained for layer {wanted}; found {names} alone; "
            "copy the others there as well"
        )
    return wanted, biases[0], vectors


def _check_widths(bias: ReferenceVector, vectors: Iterable[ReferenceVector]) -> None:
    for vector in vectors:
        if len(vector.values) != len(bias.values):
            raise HybridError(
                f"{vector.file.path}: the vector must be as wide as the bias, {len(bias.values)}; found "
                f"{len(vector.values)}; use vectors of one model"
            )


def _chosen(
    source: Path, vectors: Mapping[int, ReferenceVector], latents: Sequence[int] | None
) -> dict[int, ReferenceVector]:
    wanted = sorted(vectors if latents is None else set(latents))
    missing = [str(latent) for latent in wanted if latent not in vectors]
    if missing or not wanted:
        raise HybridError(
            f"{source}: every latent that is asked for needs a vector, and one must be; found none for "
            f"{few(missing) or 'no latent'}; ask for some of {', '.join(map(str, vectors))}"
        )
    return {latent: vectors[latent] for latent in wanted}


def _behavior(latent: int, vector: ReferenceVector, words: Mapping[int, taxonomy.Category]) -> dict[str, Any]:
    category = words.get(latent, taxonomy.unnamed(latent))
    return {
        "key": vector.file.category,
        "latent": latent,
        "title": category.title,
        "description": category.description,
        "examples": category.examples,
        "tensor": f"vector.{vector.file.category}",
    }


def _known(vectors: Sequence[ReferenceVector]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The hyperparameters that all vectors share, and the others by vector; of norms the tensors tell themselves."""
    known = {
        vector.file.category: vector.known.model_dump(exclude_none=True, exclude={"vector_norm"}) for vector in vectors
    }
    first, *others = known.values()
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    names = {name: None for fields in known.values() for name in fields if name not in common}  # a set in order
    return common, {name: {key: known[key].get(name) for key in known} for name in names}


def _recipe(common: Mapping[str, Any], own: Mapping[str, Any], sae: ReferenceSae) -> str:
    """What is known of the training, as JSON."""
    read = {"file": sae.file.path.name}
    if not sae.mean_is_known:
        read["activation_mean"] = "not stored, taken as zero"
    return json.dumps({"vectors": common, "by_vector": own, "sae": read}, separators=(",", ":"))
