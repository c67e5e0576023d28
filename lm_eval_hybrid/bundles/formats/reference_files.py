"""Which files of the method's research repository belong to a pair of models.

The layout, where a model is called by the last part of its hub id, in lower case:

    train-vectors/results/vars/optimized_vectors/<base>_bias_linear.pt, <base>_idxN_linear.pt
    train-vectors/results/vars/hyperparams/steering_vector_hyperparams_<base>_<bias or idxN>_linear.json
    train-saes/results/vars/saes/sae_<thinking>_layer<L>_clusters<K>.pt
    train-saes/results/vars/sae_topk_results_<thinking>_layer<L>.json

Older vectors lack `_linear`. Where a base has vectors for two thinking models, <base>-on-<thinking> stands for <base>.
Any folder of it will do for the whole, and so will one that holds the files without the folders.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_hybrid.bundles.formats.direction import few
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular

_FOLDERS = (
    "train-vectors/results/vars/optimized_vectors",
    "train-vectors/results/vars/hyperparams",
    "train-saes/results/vars/saes",
    "train-saes/results/vars",
)
_CATEGORY = r"(bias|idx(?:0|[1-9][0-9]{0,6}))"
_LINEAR = "_linear"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorFile:
    """A vector of the base: `bias` or `idxN`, and its hyperparameters where there are any."""

    category: str
    path: Path
    hyperparameters: Path | None

    @property
    def latent(self) -> int | None:
        """The latent that it belongs to, None for the bias."""
        return None if self.category == "bias" else int(self.category.removeprefix("idx"))


@dataclass(frozen=True)
class SaeFile:
    """An SAE of the thinking model after a layer (from 0), and the taxonomy of the layer's SAEs where there is one."""

    layer: int
    latents: int
    path: Path
    taxonomy: Path | None


def called(id: str) -> str:
    """The name that files have a model by: the last part of its hub id or path, in lower case."""
    return id.rstrip("/").rsplit("/", 1)[-1].lower()


def listing(source: Path) -> dict[str, Path]:
    """The files in `source`, by name, and in the folders of the layout that it has or is one of.

    Raises:
        HybridError: where it is no folder.
    """
    if not source.is_dir():
        raise HybridError(
            f"{source}: an import must be given a folder of the layout; found none; give one that is there"
        )
    resolved = source.resolve()
    parts = ("train-vectors", "train-saes")
    above = [folder.parent for folder in (resolved, *resolved.parents) if folder.name in parts][:1]
    # A folder of the layout may be given, or a copy of a part of it: `vars` alone, say.
    ends = ["/".join(folder.split("/")[skipped:]) for folder in _FOLDERS for skipped in range(4)]
    folders = [source, *(source / end for end in ends), *(above[0] / folder for folder in _FOLDERS if above)]
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                found.setdefault(path.name, path)
    return found


def vectors(source: Path, files: Mapping[str, Path], base: str, thinking: str) -> list[VectorFile]:
    """The vectors of a base, the bias first, then by latent.

    Args:
        files: by name, as from `listing`.
        base, thinking: as `called` gives them.

    Raises:
        HybridError: where there are none, no bias, or one only as an adaptive or low-rank variant.
    """
    prefix, found = base, _variants(files, base)
    if own := _variants(files, f"{base}-on-{thinking}"):
        prefix, found = f"{base}-on-{thinking}", own
    if not found:
        pattern = re.compile(rf"(.+)_{_CATEGORY}(?:_linear)?\.pt")
        others = {match[1] for name in files if (match := pattern.fullmatch(name))}
        raise HybridError(
            f"{source}: must hold vectors of {base}, such as {base}_idx0_linear.pt; found those of "
            f"{few(sorted(others)) or 'no model'}; name one of these as the base, or give another folder"
        )
    # Vectors of one training belong together: the older ones are read where there are no newer ones.
    suffix = _LINEAR if any(_LINEAR in variants for variants in found.values()) else ""
    for category, variants in found.items():
        others = [path.name for kind, path in variants.items() if kind not in ("", _LINEAR)]
        if not variants.keys() & {"", _LINEAR}:
            raise HybridError(
                f"{source}: a bundle holds one vector a behavior; found {category} only as an adaptive or low-rank "
                f"variant, {few(others)}; remove it to import the others, or train {category} with steering_type linear"
            )
    chosen = {category: variants[suffix] for category, variants in found.items() if suffix in variants}
    left = {path.name for variants in found.values() for path in variants.values()} - {p.name for p in chosen.values()}
    if left:
        log.warning("%s: not imported: %s", source, few(sorted(left)))
    if "bias" not in chosen:
        raise HybridError(
            f"{source}: needs the bias vector {prefix}_bias{suffix}.pt; found {few(sorted(chosen))} without it; "
            "copy it there as well"
        )
    read = [
        VectorFile(category, path, files.get(f"steering_vector_hyperparams_{prefix}_{category}{suffix}.json"))
        for category, path in chosen.items()
    ]
    return sorted(read, key=lambda file: -1 if file.latent is None else file.latent)


def sae(source: Path, files: Mapping[str, Path], thinking: str, latents: int, layer: int | None) -> SaeFile:
    """The SAE for vectors of so many latents: of exactly as many, or else the only one that has more.

    Args:
        thinking: as `called` gives it.
        latents: one more than the highest that has a vector.
        layer: its layer; None where there is only one to choose.

    Raises:
        HybridError: where there is none, or several and nothing chooses.
    """
    pattern = re.compile(rf"sae_{re.escape(thinking)}_layer([0-9]{{1,5}})_clusters([0-9]{{1,7}})\.pt")
    named = {name: (int(m[1]), int(m[2])) for name in files if (m := pattern.fullmatch(name))}
    covering = {name: (at, count) for name, (at, count) in named.items() if count >= latents and layer in (None, at)}
    exact = {name: found for name, found in covering.items() if found[1] == latents}
    fitting = exact or covering
    if not fitting:
        where = "" if layer is None else f" at layer {layer}"
        saes = few(sorted(named) or sorted(name for name in files if re.fullmatch(r"sae_.+_clusters[0-9]+\.pt", name)))
        raise HybridError(
            f"{source}: needs an SAE of {thinking} with {latents} latents or more{where}, such as "
            f"sae_{thinking}_layer0_clusters{latents}.pt; found {saes or 'none'}; copy it there, or name "
            "the model that it is of"
        )
    if len(fitting) > 1:
        several = len({at for at, _ in fitting.values()}) > 1
        advice = "choose with --sae-layer" if several else "leave one of them there"
        raise HybridError(
            f"{source}: needs one SAE of {thinking} for {latents} latents; found {few(sorted(fitting))}; {advice}"
        )
    ((name, (at, count)),) = fitting.items()
    if len(covering) > 1:
        log.warning("%s: %s is taken, whose latents are as many as the vectors'", source, name)
    return SaeFile(at, count, files[name], files.get(f"sae_topk_results_{thinking}_layer{at}.json"))


def json_object(path: Path, limit: int) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        HybridError: where there is no such file of at most `limit` bytes, or it holds something else.
    """
    data = read_regular(path, limit)
    try:
        fields = json.loads(data)
        # An escape can be half a character, which no file can be written with.
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: must be JSON; found {error}; copy it again") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{path}: must be a JSON object; found {type(fields).__name__}; copy it again")
    return fields


def _variants(files: Mapping[str, Path], prefix: str) -> dict[str, dict[str, Path]]:
    """For each category of a model its files, by what follows the category in their names."""
    pattern = re.compile(rf"{re.escape(prefix)}_{_CATEGORY}(|{_LINEAR}|_\w*(?:adaptive|lora)\w*)\.pt")
    found: dict[str, dict[str, Path]] = {}
    for name, path in files.items():
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = path
    return found
