"""Find the files of a pair of models among those of the method's research repository.

The layout, where a model is called by the last part of its hub id, in lower case:

    train-vectors/results/vars/optimized_vectors/<base>_bias_linear.pt, <base>_idxN_linear.pt
    train-vectors/results/vars/hyperparams/steering_vector_hyperparams_<base>_<bias or idxN>_linear.json
    train-saes/results/vars/saes/sae_<thinking>_layer<L>_clusters<K>.pt
    train-saes/results/vars/sae_topk_results_<thinking>_layer<L>.json

Older vectors lack `_linear`. If a base has vectors for two thinking models, <base>-on-<thinking> stands for <base>. Any
folder of the layout does for the whole, and so does one that holds the files without the folders.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.bundles.formats.foreign import few
from lm_eval_hybrid.common.errors import HybridError

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
    """The file of one vector of the base, `bias` or `idxN`, and that of its hyperparameters if there is one."""

    category: str
    path: Path
    hyperparameters: Path | None

    @property
    def latent(self) -> int | None:
        """The latent that it belongs to, None for the bias."""
        return None if self.category == "bias" else int(self.category.removeprefix("idx"))


@dataclass(frozen=True)
class SaeFile:
    """The file of an SAE over the thinking model after a layer (from 0), and that of its taxonomy if there is one."""

    layer: int
    latents: int
    path: Path
    taxonomy: Path | None


def file_name(id: str) -> str:
    """A model's name in file names: the last part of its hub id or path, in lower case."""
    return id.rstrip("/").rsplit("/", 1)[-1].lower()


def listing(source: Path) -> dict[str, Path]:
    """The files by name, in `source` and in the folders of the layout that it has, or is one of.

    Raises HybridError if it is no folder.
    """
    if not source.is_dir():
        raise HybridError(f"{source}: no such folder; a folder of the repository is needed; correct the path")
    resolved = source.resolve()
    parts = ("train-vectors", "train-saes")
    above = [folder.parent for folder in (resolved, *resolved.parents) if folder.name in parts][:1]
    # A folder of the layout may be given, or a copy of a part: `vars` alone, say.
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
        files: by name, from `listing`.
        base, thinking: from `file_name`.

    Raises HybridError if there are none, no bias, or one exists only as an adaptive or low-rank variant.
    """
    prefix, found = base, _variants(files, base)
    if own := _variants(files, f"{base}-on-{thinking}"):
        prefix, found = f"{base}-on-{thinking}", own
    if not found:
        pattern = re.compile(rf"(.+)_{_CATEGORY}(?:_linear)?\.pt")
        models = sorted({match[1] for name in files if (match := pattern.fullmatch(name))})
        found_there = f"but those of {few(models) or 'no model'}"
        advice = "name one of these as the base, or give another folder"
        raise HybridError(f"{source}: no vectors of {base}, such as {base}_idx0_linear.pt, {found_there}; {advice}")
    # Vectors of one training belong together: older ones are read only if there are no newer ones.
    suffix = _LINEAR if any(_LINEAR in variants for variants in found.values()) else ""
    for category, variants in found.items():
        if not variants.keys() & {"", _LINEAR}:
            names = few(path.name for path in variants.values())
            needed = "a bundle holds one vector a behavior; remove it to import the others, or train it as linear"
            raise HybridError(f"{source}: {category} is only an adaptive or low-rank variant, {names}; {needed}")
    chosen = {category: variants[suffix] for category, variants in found.items() if suffix in variants}
    left = {path.name for variants in found.values() for path in variants.values()} - {p.name for p in chosen.values()}
    if left:
        log.warning("%s: not imported: %s", source, few(sorted(left)))
    if "bias" not in chosen:
        missing = f"the bias vector {prefix}_bias{suffix}.pt"
        raise HybridError(f"{source}: {few(sorted(chosen))} without {missing}; it is needed; copy it there as well")
    read = [
        VectorFile(category, path, files.get(f"steering_vector_hyperparams_{prefix}_{category}{suffix}.json"))
        for category, path in chosen.items()
    ]
    return sorted(read, key=lambda file: -1 if file.latent is None else file.latent)


def sae(source: Path, files: Mapping[str, Path], thinking: str, latents: int, layer: int | None) -> SaeFile:
    """The SAE for vectors of that many latents: with exactly as many, or else the only one with more.

    Args:
        thinking: from `file_name`.
        latents: one more than the highest that has a vector.
        layer: the SAE's layer; None if there is only one to choose.

    Raises HybridError if there is none, or several and nothing chooses.
    """
    pattern = re.compile(rf"sae_{re.escape(thinking)}_layer([0-9]{{1,5}})_clusters([0-9]{{1,7}})\.pt")
    named = {name: (int(m[1]), int(m[2])) for name in files if (m := pattern.fullmatch(name))}
    covering = {name: (at, count) for name, (at, count) in named.items() if count >= latents and layer in (None, at)}
    exact = {name: found for name, found in covering.items() if found[1] == latents}
    fitting = exact or covering
    if not fitting:
        where = "" if layer is None else f" at layer {layer}"
        saes = few(sorted(named) or sorted(name for name in files if re.fullmatch(r"sae_.+_clusters[0-9]+\.pt", name)))
        name = f"sae_{thinking}_layer0_clusters{latents}.pt"
        found_there = f"such as {name}, but {saes or 'none'}; copy it there, or name the model of that SAE"
        raise HybridError(f"{source}: no SAE of {thinking} with {latents} latents or more{where}, {found_there}")
    if len(fitting) > 1:
        several = len({at for at, _ in fitting.values()}) > 1
        advice = "choose with --sae-layer" if several else "leave one of them there"
        names = few(sorted(fitting))
        raise HybridError(f"{source}: several SAEs of {thinking} for {latents} latents: {names}; one is read; {advice}")
    ((name, (at, count)),) = fitting.items()
    if len(covering) > 1:
        log.warning("%s: %s is used, since it has as many latents as there are vectors", source, name)
    return SaeFile(at, count, files[name], files.get(f"sae_topk_results_{thinking}_layer{at}.json"))


def _variants(files: Mapping[str, Path], prefix: str) -> dict[str, dict[str, Path]]:
    """For each category of a model its files, by the suffix after the category in their names."""
    pattern = re.compile(rf"{re.escape(prefix)}_{_CATEGORY}(|{_LINEAR}|_\w*(?:adaptive|lora)\w*)\.pt")
    found: dict[str, dict[str, Path]] = {}
    for name, path in files.items():
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = path
    return found
