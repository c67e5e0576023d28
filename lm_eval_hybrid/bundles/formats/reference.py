"""The files of the method's research repository (arXiv 2510.07364) as a bundle.

A folder may hold the files of several pairs, layers and numbers of latents: `reference_files` finds those of one pair,
`reference_parts` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import foreign, reference_files, reference_parts
from lm_eval_hybrid.bundles.formats.foreign import few
from lm_eval_hybrid.bundles.formats.reference_parts import LatentWords, ReferenceVector
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ImportOptions

# The repository's runs for the paper's table try every coefficient over every window at each position.
COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WINDOWS = (1, 15, 50, 100, 0)
CITATION = (
    "Constantin Venhoff, Iván Arcuschin, Philip Torr, Arthur Conmy, Neel Nanda: Base Models Know How to Reason, "
    "Thinking Models Learn When. arXiv:2510.07364."
)


def read(source: Path, options: ImportOptions) -> Bundle:
    """The bundle of the pair `options.base` and `options.thinking`, from a folder of the repository.

    Args:
        options: `layer` chooses among vectors of several layers, `sae_layer` among SAEs, `latents` among vectors.

    Raises HybridError if files are missing, ambiguous, of another kind, or do not fit each other or the models.
    """
    files = reference_files.listing(source)
    base, thinking = reference_files.file_name(options.base), reference_files.file_name(options.thinking)
    found = [reference_parts.vector(file) for file in reference_files.vectors(source, files, base, thinking)]
    layer, bias, vectors = _at_one_layer(source, found, options.layer)
    for vector in vectors.values():
        if len(vector.values) != len(bias.values):
            needed = f"the bias has {len(bias.values)}"
            raise HybridError(
                f"{vector.file.path}: the vector has width {len(vector.values)}; {needed}; use one model's"
            )
    sae_file = reference_files.sae(source, files, thinking, max(vectors) + 1, options.sae_layer)
    sae = reference_parts.sae(sae_file)
    words = reference_parts.taxonomy(sae_file.taxonomy, sae_file.latents) if sae_file.taxonomy else {}
    chosen = {latent: vectors[latent] for latent in sorted(foreign.chosen(source, options.latents, sorted(vectors)))}
    common, own = _known([bias, *chosen.values()])
    read = {
        "file": sae_file.path.name,
        **({} if sae.mean_is_known else {"activation_mean": "not stored, taken as zero"}),
    }
    return options.bundle(
        {
            "bias": bias.values,
            **{f"vector.{vector.file.category}": vector.values for vector in chosen.values()},
            **sae.tensors,
        },
        behaviors=[_behavior(latent, vector, words) for latent, vector in chosen.items()],
        steering={"layer": layer, "coefficients": COEFFICIENTS, "windows": WINDOWS},
        sae={"layer": sae_file.layer, "latents": sae_file.latents, "k": sae.k},
        source=json.dumps({"vectors": common, "by_vector": own, "sae": read}, separators=(",", ":")),
        description=f"Vectors of {base} and an SAE of {thinking}, from the files of the method's research repository.",
        citation=CITATION,
        seed=common.get("seed"),
    )


def _at_one_layer(
    source: Path, found: Sequence[ReferenceVector], layer: int | None
) -> tuple[int, ReferenceVector, dict[int, ReferenceVector]]:
    """(layer, bias, vectors by latent), of the vectors that were trained for the layer or do not say."""
    layers = sorted({vector.known.layer for vector in found if vector.known.layer is not None})
    if layer is None and len(layers) == 1:
        layer = layers[0]
    if layer is None or (layers and layer not in layers):
        stated = f"for layers {', '.join(map(str, layers))}" if layers else "without a stated layer"
        given = "" if layer is None else f", not {layer}"
        raise HybridError(f"{source}: vectors {stated}{given}; one layer is steered; choose it with --layer")
    kept = [vector for vector in found if vector.known.layer in (None, layer)]
    vectors = {vector.file.latent: vector for vector in kept if vector.file.latent is not None}
    biases = [vector for vector in kept if vector.file.latent is None]
    if not biases or not vectors:
        found_there = f"only {few(vector.file.category for vector in kept)} for layer {layer}"
        needed = "the bias vector and that of a behavior are needed"
        raise HybridError(f"{source}: {found_there}; {needed}; copy the others there as well")
    return layer, biases[0], vectors


def _behavior(latent: int, vector: ReferenceVector, words: Mapping[int, LatentWords]) -> dict[str, Any]:
    own, key = words.get(latent, LatentWords(f"Category {latent}")), vector.file.category
    text = {"title": own.title, "description": own.description, "examples": own.examples}
    return {"key": key, "latent": latent, **text, "tensor": f"vector.{key}"}


def _known(vectors: Sequence[ReferenceVector]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The hyperparameters that all vectors share, and the others by vector; without norms, which tensors have."""
    known = {
        vector.file.category: vector.known.model_dump(exclude_none=True, exclude={"vector_norm"}) for vector in vectors
    }
    first, *others = known.values()
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    names = dict.fromkeys(name for fields in known.values() for name in fields if name not in common)
    return common, {name: {key: known[key].get(name) for key in known} for name in names}
