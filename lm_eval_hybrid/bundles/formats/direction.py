"""One direction without its timing: what `steered` files and control vectors hold, as a bundle and out of one.

The bundle has a single behavior and an SAE of a single latent, whose weights are zero: the category is always that
latent. It is steered at every position by one coefficient, which is what such files mean.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import models, torch_file
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
_SHOWN = 12  # names in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Direction:
    """What is added to the residual stream: coefficient * vector after a layer.

    Attributes:
        layer: the base's layer, from 0.
        vector: [d_base] float32.
        coefficient: finite.
    """

    layer: int
    vector: Tensor
    coefficient: float


def layer_of(point: str) -> int | None:
    """The layer, from 0, after which the residual stream is at a module's output or a TransformerLens hook.

    None where `point` is anything else (attention, an embedding, `hook_resid_pre` of layer 0).
    """
    if found := _MODULE.fullmatch(point):
        return int(found[1])
    if found := _HOOK.fullmatch(point):
        layer = int(found[1]) - (found[2] == "pre")
        return layer if layer >= 0 else None
    return None


def pick(source: Path, layers: Mapping[str, int | None], wanted: int | None) -> str:
    """The name in `layers` that becomes the bundle: the only one, or the one at the wanted layer.

    Args:
        layers: by name of what the file holds, the layer that it steers after; None where it is not one.

    Raises:
        HybridError: where that is none or several, or is no layer's output.
    """
    fitting = [name for name, layer in layers.items() if wanted is None or layer == wanted]
    if len(fitting) != 1:
        at = "" if wanted is None else f" ({len(fitting) or 'none'} at layer {wanted})"
        raise HybridError(
            f"{source}: a bundle steers after one layer; found {few(layers)}{at}; choose one that is there"
        )
    name = fitting[0]
    if layers[name] is None:
        raise HybridError(
            f"{source}: a bundle steers a layer's output, such as layers.3; found {few([name])}; use another file"
        )
    if len(layers) > 1:
        log.warning("%s: %s is imported; left out: %s", source, name, few(other for other in layers if other != name))
    return name


def few(names: Iterable[object]) -> str:
    """The names for a message, of many the first ones."""
    texts = [str(name) for name in names]
    more = len(texts) - _SHOWN
    shown = (text[:80] if text.isprintable() else ascii(text)[:80] for text in texts[:_SHOWN])
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def vector_of(value: Any, what: str) -> Tensor:
    """A vector from a file, float32 [d], finite.

    Raises:
        HybridError: where it is not a tensor of such numbers in one dimension.
    """
    shape = list(getattr(value, "shape", ()))
    if (len(shape) == 1 and not 0 < shape[0] <= _MAX_WIDTH) or len(shape) > 1:
        raise HybridError(f"{what} must be one vector; found shape {few(shape)}; use another file")
    vector = torch_file.as_float32(value, what)
    if vector.dim() != 1:
        raise HybridError(f"{what} must be one vector; found a number; use another file")
    return vector


def bundle_of(direction: Direction, wanted: ImportOptions, title: str, description: str, source: str) -> Bundle:
    """The direction as a bundle of one behavior, steered at every position.

    Args:
        title, description: the behavior's, and the latter the bundle's.
        source: one line of where it is from.

    Raises:
        HybridError: where it does not fit the models.
    """
    import torch

    width = models.card("thinking", wanted.thinking).hidden_size
    tensors = {
        "bias": torch.zeros_like(direction.vector),
        f"vector.{KEY}": direction.vector,
        "sae.encoder.weight": torch.zeros(1, width),
        "sae.encoder.bias": torch.zeros(1),
        "sae.decoder.weight": torch.zeros(width, 1),
        "sae.decoder.bias": torch.zeros(width),
        "sae.mean": torch.zeros(width),
    }
    always = "The SAE has this latent only, with zero weights: it is the category everywhere."
    behavior = {
        "key": KEY,
        "latent": 0,
        "title": title,
        "description": always,
        "examples": (),
        "tensor": f"vector.{KEY}",
    }
    return wanted.bundle(
        tensors,
        behaviors=[behavior],
        steering={
            "layer": direction.layer,
            "coefficients": (direction.coefficient,),
            "windows": (0,),
            "gate": "always",
            "select": "fixed",
        },
        sae={"layer": wanted.sae_layer or 0, "latents": 1, "k": 1, "normalization": "none"},
        source=source,
        description=description,
    )


def choose(bundle: Bundle, chosen: ExportOptions) -> Direction:
    """The direction of one behavior: bias + vector, at one coefficient.

    Raises:
        HybridError: where the choice is needed and not made, or names what the bundle has not.
    """
    steering = bundle.manifest.steering
    keys = [behavior.key for behavior in bundle.manifest.behaviors]
    key = keys[0] if chosen.behavior is None and len(keys) == 1 else chosen.behavior
    if key not in keys:
        found = "none" if key is None else repr(key)
        raise HybridError(
            f"the format holds one behavior, named by its key; found {found}; name one of {', '.join(keys)}"
        )
    coefficient = max(steering.coefficients) if chosen.coefficient is None else chosen.coefficient
    if not math.isfinite(coefficient):
        raise HybridError(f"a coefficient must be a finite number; found {coefficient}; give another")
    return Direction(steering.layer, bundle.bias + bundle.tensors[f"vector.{key}"], float(coefficient))


def lost(bundle: Bundle, direction: Direction) -> list[str]:
    """What of the bundle a file of this direction alone does not hold, a line each."""
    steering, behaviors = bundle.manifest.steering, bundle.manifest.behaviors
    lines = []
    if steering.gate != "always":
        lines.append(f"when to steer (gate {steering.gate}): the vector is added at every position")
    if steering.windows != (0,):
        windows = ", ".join(str(window) if window else "all" for window in steering.windows)
        lines.append(f"how many positions are steered (windows {windows}): all of them are")
    if len(behaviors) > 1:
        lines.append(f"which of {len(behaviors)} behaviors: the file holds one, and not the SAE that names it")
    elif bundle.manifest.sae.latents > 1:
        lines.append("the SAE, which calls for the bias alone where another latent is the strongest")
    if len(steering.coefficients) > 1 or steering.select != "fixed":
        tried = ", ".join(f"{coefficient:g}" for coefficient in steering.coefficients)
        lines.append(
            f"the coefficients that are tried ({tried}; select {steering.select}): it is {direction.coefficient:g}"
        )
    return [*lines, "the models that it was made with, how it was made, results, licence and authors"]


def check_new(target: Path) -> None:
    """HybridError where something is at `target` already."""
    if target.exists():
        raise HybridError(f"{target}: an export needs a new path; found something there; choose another, or remove it")
