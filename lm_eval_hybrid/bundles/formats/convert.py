"""Read other programs' files into bundles, and write bundles in their formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import card_by_id
from lm_eval_hybrid.bundles.formats import READABLE, gguf, lm_eval_steered, mapping, reference, saelens
from lm_eval_hybrid.bundles.manifest import Manifest, first_problem
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

# For sources that name none: few enough to be quick, and easy to edit later (`behaviors new-version`).
COEFFICIENTS = (0.2, 0.4, 0.6, 0.8, 1.0)
WINDOWS = (1,)


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about an imported bundle beside its source.

    Attributes:
        name, version: the bundle's.
        base, thinking: the two models, as hub ids or folders.
        layer: the base layer to steer after (from 0), if the source has several or names none.
        sae_layer: the thinking model's layer that the SAE reads (from 0), if the source names none.
        latents: the source's latents that become behaviors; None for all.
        license: SPDX identifier.
        authors: authors of the source.
    """

    name: str
    version: str
    base: str
    thinking: str
    layer: int | None = None
    sae_layer: int | None = None
    latents: tuple[int, ...] | None = None
    license: str = "unknown"
    authors: tuple[str, ...] = ("unknown",)

    def bundle(
        self,
        tensors: Mapping[str, Tensor],
        behaviors: Sequence[Mapping[str, Any]],
        steering: Mapping[str, Any],
        sae: Mapping[str, Any],
        source: str,
        description: str,
        citation: str = "",
        seed: int | None = None,
    ) -> Bundle:
        """The parts as a checked bundle, not saved yet.

        Args:
            tensors: all that `Bundle` requires, float32.
            behaviors, steering, sae: fields of the manifest's parts; coefficients and windows have defaults.
            source: one line: where the tensors are from and what is known about their training.

        Raises HybridError if the parts do not form a bundle, or do not fit the models.
        """
        fields = {
            "name": self.name,
            "version": self.version,
            "description": description,
            "license": self.license,
            "authors": self.authors,
            "citation": citation,
            "base": card_by_id("base", self.base, tensors["bias"].shape[-1]),
            "thinking": card_by_id("thinking", self.thinking, tensors["sae.mean"].shape[-1]),
            "steering": {"coefficients": COEFFICIENTS, "windows": WINDOWS, **steering},
            "sae": sae,
            "behaviors": behaviors,
            "prompt": {"thinking": "chat"},
            "training": {
                "recipe": source,
                "seed": seed,
                "code_version": f"imported by lm-eval-hybrid {__version__}",
                "data": "as the source says",
                "holdout": {},
            },
        }
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            raise HybridError(f"{self.name}@{self.version}: {first_problem(error)}; correct the arguments") from None
        return Bundle(manifest, dict(tensors))


@dataclass(frozen=True)
class ExportOptions:
    """What to export, for formats that hold one direction.

    Attributes:
        behavior: key of the behavior; None if the bundle has only one.
        coefficient: multiple of (bias + vector); None for the bundle's largest.
    """

    behavior: str | None = None
    coefficient: float | None = None


_READERS: dict[str, Callable[[Path, ImportOptions], Bundle]] = {
    "reference": reference.read,
    "mapping": mapping.read,
    "saelens": saelens.read,
    "gguf": gguf.read,
    "repeng": gguf.read,
    "steered": lm_eval_steered.read,
}
_WRITERS: dict[str, Callable[[Bundle, ExportOptions, Path], list[str]]] = {
    "steered": lm_eval_steered.write,
    "gguf": gguf.write,
    "repeng": gguf.write,
    "saelens": saelens.write,
}


def read(source: Path, options: ImportOptions, format: str | None = None) -> Bundle:
    """The bundle in another program's files; the format is detected unless it is given.

    Raises HybridError if there is nothing, or nothing of a known format, or it forms no bundle.
    """
    if not source.exists():
        raise HybridError(f"{source}: no such file or folder; it is to be imported; correct the path")
    return _READERS[format or detect(source)](source, options)


def write(bundle: Bundle, options: ExportOptions, target: Path, format: str) -> list[str]:
    """Write a bundle in another program's format; returns what that format cannot hold, a line each.

    Raises HybridError if the target exists already, or the format needs an option that is missing.
    """
    return _WRITERS[format](bundle, options, target)


def detect(source: Path) -> str:
    """The format, from a file's suffix or a folder's files. Raises HybridError for any other source."""
    suffixes = {".gguf": "gguf", ".pt": "steered", ".pth": "steered", ".csv": "steered"}
    if source.is_file() and source.suffix in suffixes:
        return suffixes[source.suffix]
    if source.is_dir():
        if (source / "mapping.yaml").is_file():
            return "mapping"
        if (source / "cfg.json").is_file():
            return "saelens"
        if next(source.rglob("*.pt"), None) is not None:
            return "reference"
    kind = "a folder" if source.is_dir() else "a file"
    raise HybridError(
        f"{source}: {kind} of unknown format; it must be one of {', '.join(READABLE)}; name it with --format"
    )
