"""One direction without its timing, as `steered` files and control vectors hold it, to and from a bundle.

The bundle has one behavior, and an SAE of one latent with zero weights, which is therefore always the category. It
steers at every position by one coefficient, which is what such files mean.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.compatibility import card_by_id
from lm_eval_hybrid.bundles.formats.foreign import as_float32, few
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

KEY = "direction"
_WRAPPERS = "base_model|model|transformer|gpt_neox|decoder|language_model"
_MODULE = re.compile(rf"(?:(?:{_WRAPPERS})\.)*(?:layers|h|blocks)\.([0-9]{{1,6}})")
_HOOK = re.compile(r"blocks\.([0-9]{1,6})\.hook_resid_(pre|post)")
_MAX_WIDTH = 1 << 24

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Direction:
    """coefficient * vector, added to the residual stream after a layer.

    Attributes:
        layer: the base's layer, from 0.
        vector: [d_base] float32.
        coefficient: a finite number.
    """

    layer: int
    vector: Tensor
    coefficient: float


def layer_of(point: str) -> int | None:
    """The layer, from 0, whose output the residual stream at a module's output or TransformerLens hook is.

    None for any other point (attention, an embedding, `hook_resid_pre` of layer 0).
    """
    if found := _MODULE.fullmatch(point):
        return int(found[1])
    if found := _HOOK.fullmatch(point):
        layer = int(found[1]) - (found[2] == "pre")
        return layer if layer >= 0 else None
    return None


def pick(source: Path, layers: Mapping[str, int | None], layer: int | None) -> str:
    """The name in `layers` to import: the only one, or the one at `layer`; logs the names left out.

    Args:
        layers: for each name in the file the layer that it steers after; None if it is no layer's output.

    Raises HybridError if none or several fit, or the one that fits is no layer's output.
    """
    fitting = [name for name, at in layers.items() if layer in (None, at)]
    if len(fitting) != 1:
        count = "" if layer is None else f" ({len(fitting) or 'none'} at layer {layer})"
        raise HybridError(f"{source}: holds {few(layers)}{count}; a bundle steers after one layer; choose it")
    (name,) = fitting
    if layers[name] is None:
        raise HybridError(
            f"{source}: {few([name])} is no layer's output, such as layers.3, which a bundle steers; use another file"
        )
    if len(layers) > 1:
        log.warning("%s: %s is imported; left out: %s", source, name, few(other for other in layers if other != name))
    return name


def vector_of(value: Any, what: str) -> Tensor:
    """A vector from a file, float32 [d], finite. Raises HybridError for anything else."""
    shape = list(getattr(value, "shape", ()))
    if len(shape) > 1 or (len(shape) == 1 and not 0 < shape[0] <= _MAX_WIDTH):
        raise HybridError(f"{what} has shape {few(shape)}; it must be one vector; use another file")
    vector = as_float32(value, what)
    if vector.dim() != 1:
        raise HybridError(f"{what} is a number; it must be one vector; use another file")
    return vector


def bundle_of(direction: Direction, options: ImportOptions, title: str, description: str, source: str) -> Bundle:
    """The direction as a bundle of one behavior, which steers at every position.

    Args:
        title: the behavior's.
        description: the bundle's.
        source: where it is from, in one line.

    Raises HybridError if it does not fit the models.
    """
    import torch

    width = card_by_id("thinking", options.thinking).hidden_size
    tensors = {
        "bias": torch.zeros_like(direction.vector),
        f"vector.{KEY}": direction.vector,
        "sae.encoder.weight": torch.zeros(1, width),
        "sae.encoder.bias": torch.zeros(1),
        "sae.decoder.weight": torch.zeros(width, 1),
        "sae.decoder.bias": torch.zeros(width),
        "sae.mean": torch.zeros(width),
    }
    behavior = {
        "key": KEY,
        "latent": 0,
        "title": title,
        "description": "The SAE's only latent, with zero weights: the category at every position.",
        "examples": (),
        "tensor": f"vector.{KEY}",
    }
    return options.bundle(
        tensors,
        behaviors=[behavior],
        steering={
            "layer": direction.layer,
            "coefficients": (direction.coefficient,),
            "windows": (0,),
            "gate": "always",
            "select": "fixed",
        },
        sae={"layer": options.sae_layer or 0, "latents": 1, "k": 1, "normalization": "none"},
        source=source,
        description=description,
    )


def choose(bundle: Bundle, options: ExportOptions) -> Direction:
    """The direction of one behavior: bias + vector, at one coefficient.

    Raises HybridError if the options name no behavior of the bundle, or an infinite coefficient.
    """
    steering = bundle.manifest.steering
    keys = [behavior.key for behavior in bundle.manifest.behaviors]
    key = keys[0] if options.behavior is None and len(keys) == 1 else options.behavior
    if key not in keys:
        given = "no behavior is named" if key is None else f"there is no behavior {key!r}"
        raise HybridError(f"{given}; the format holds one; name one of {', '.join(keys)}")
    coefficient = max(steering.coefficients) if options.coefficient is None else options.coefficient
    if not math.isfinite(coefficient):
        raise HybridError(f"the coefficient is {coefficient}; it must be a finite number; give another")
    return Direction(steering.layer, bundle.bias + bundle.tensors[f"vector.{key}"], float(coefficient))


def lost(bundle: Bundle, direction: Direction) -> list[str]:
    """What a file of this direction alone cannot hold of the bundle, a line each."""
    steering, behaviors = bundle.manifest.steering, bundle.manifest.behaviors
    lines = []
    if steering.gate != "always":
        lines.append(f"when to steer (gate {steering.gate}): the vector is added at every position")
    if steering.windows != (0,):
        windows = ", ".join(str(window) if window else "all" for window in steering.windows)
        lines.append(f"how many positions to steer (windows {windows}): all are steered")
    if len(behaviors) > 1:
        lines.append(f"which of {len(behaviors)} behaviors: the file holds one, without the SAE that names it")
    elif bundle.manifest.sae.latents > 1:
        lines.append("the SAE, which selects the bias alone where another latent is the strongest")
    if len(steering.coefficients) > 1 or steering.select != "fixed":
        tried = ", ".join(f"{coefficient:g}" for coefficient in steering.coefficients)
        lines.append(f"the coefficients to try ({tried}; select {steering.select}): {direction.coefficient:g} is used")
    return [*lines, "the models, the training, results, licence and authors"]


def check_new(target: Path) -> None:
    """Raise HybridError if `target` exists."""
    if target.exists():
        raise HybridError(f"{target}: exists already; an export needs a new path; choose another, or remove it")
