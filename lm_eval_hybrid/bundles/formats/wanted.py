"""What importing is told beside the source, and the bundle that it makes of the parts found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import models
from lm_eval_hybrid.bundles.manifest import Manifest, first_problem
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

# For sources that say nothing of it: few enough to be quick, and to be edited (`behaviors new-version`).
COEFFICIENTS = (0.2, 0.4, 0.6, 0.8, 1.0)
WINDOWS = (1,)


@dataclass(frozen=True)
class Wanted:
    """The bundle to make.

    Attributes:
        name, version: its own.
        base, thinking: the two models, as hub ids or folders.
        layer: the base's layer to steer after (from 0), where the source has several or does not say.
        sae_layer: the thinking model's layer that the SAE reads (from 0), where the source does not say.
        latents: of the source's latents those that become behaviors; None for all.
        license: SPDX identifier.
        authors: who made what is imported.
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
        holdout: Mapping[str, float] | None = None,
        seed: int | None = None,
    ) -> Bundle:
        """The parts as a sound bundle.

        Args:
            tensors: all that `Bundle` requires, float32; their widths are the models'.
            behaviors, steering, sae: fields of the manifest's parts; coefficients and windows have defaults.
            source: one line of where the tensors are from and what is known of their making.

        Raises:
            HybridError: where they do not make a bundle, or do not fit the models.
        """
        base = models.card("base", self.base, tensors["bias"].shape[-1])
        thinking = models.card("thinking", self.thinking, tensors["sae.mean"].shape[-1])
        fields = {
            "name": self.name,
            "version": self.version,
            "description": description,
            "license": self.license,
            "authors": self.authors,
            "citation": citation,
            "base": base,
            "thinking": thinking,
            "steering": {"coefficients": COEFFICIENTS, "windows": WINDOWS, **steering},
            "sae": sae,
            "behaviors": behaviors,
            "prompt": {"thinking": "chat"},
            "training": {
                "recipe": source,
                "seed": seed,
                "code_version": f"imported by lm-eval-hybrid {__version__}",
                "data": "as the source says",
                "holdout": holdout or {},
            },
        }
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            raise HybridError(f"{self.name}@{self.version}: {first_problem(error)}; mend the arguments") from None
        return Bundle(manifest, dict(tensors))


@dataclass(frozen=True)
class Chosen:
    """What of a bundle to export, for formats that hold one direction.

    Attributes:
        behavior: key of the behavior; None where the bundle has one only.
        coefficient: multiple of (bias + vector); None for the bundle's largest.
    """

    behavior: str | None = None
    coefficient: float | None = None
