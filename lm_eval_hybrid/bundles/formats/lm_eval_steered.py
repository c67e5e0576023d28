"""Files of the harness's `steered` model: `.pt` holds vectors by module, `.csv` names features of sparse coders.

A `.pt` file is a dictionary {hookpoint: {steering_vector, steering_coefficient, action, bias, head_index}} written by
torch.save. The harness unpickles whatever it is given; here nothing is run (see `torch_file`).
"""

from __future__ import annotations

import io
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import direction, steered_csv, torch_file
from lm_eval_hybrid.bundles.formats.direction import Direction
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

_SUFFIXES = (".pt", ".pth")
_MAX_BYTES = 1 << 26  # a vector for every layer of the largest models takes a tenth of it
_LARGEST = sys.float_info.max
_USUAL = "layers"
# Where a causal model's base_model keeps its layers, by the first letters of the architecture's name.
_LAYERS = {
    "gptneox": _USUAL,  # before gptneo
    "gptneo": "h",
    "gpt2": "h",
    "gptj": "h",
    "gptbigcode": "h",
    "bloom": "h",
    "codegen": "h",
    "falconforcausallm": "h",
    "mptforcausallm": "blocks",
    "opt": "decoder.layers",
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "phi", "olmo", "granite", "cohere", "stablelm"),
        _USUAL,
    ),
}


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The bundle of one `add` entry: gate always, its coefficient fixed, at all positions, as the harness steers.

    Args:
        wanted: `layer` chooses of several entries; `latents` of several rows of a `.csv`, by feature_index.

    Raises:
        HybridError: where the file is not sound, or holds nothing of that kind.
    """
    if source.suffix.lower() == ".csv":
        return steered_csv.read(source, wanted)
    entries = _load(source)
    name = direction.pick(source, {name: direction.layer_of(name) for name in entries}, wanted.layer)
    found = _direction(f"{source}: {name}", name, entries[name])
    description = f"The vector that {source.name} steers {name} by, a file of lm-evaluation-harness's steered model."
    return direction.bundle_of(found, wanted, "Steering vector", description, f"{source.name}, {name}: steered, .pt")


def write(bundle: Bundle, chosen: ExportOptions, target: Path) -> list[str]:
    """Write bias + vector of one behavior as a `.pt` file that `--model steered` reads; what is lost, a line each.

    Raises:
        HybridError: where something is at `target`, it does not end in .pt or .pth, or the choice is not sound.
    """
    import torch

    if target.suffix not in _SUFFIXES:
        raise HybridError(f"{target}: the harness reads files that end in .pt or .pth; found {target.name}; rename it")
    direction.check_new(target)
    found = direction.choose(bundle, chosen)
    lost = direction.lost(bundle, found)
    architecture = bundle.manifest.base.architecture
    module = layers_module(architecture)
    if module is None:
        lost.append(
            f"where the base ({architecture or 'of unknown architecture'}) keeps its layers: {_USUAL}.{found.layer} is "
            "written; rename it where model.base_model calls them otherwise"
        )
    entry = {
        "steering_vector": found.vector.contiguous().clone(),
        "steering_coefficient": found.coefficient,
        "action": "add",
        "bias": None,
        "head_index": None,
    }
    buffer = io.BytesIO()
    torch.save({f"{module or _USUAL}.{found.layer}": entry}, buffer)
    files.write_file(target, buffer.getvalue())
    return lost


def layers_module(architecture: str | None) -> str | None:
    """The module of a model's `base_model` that holds its layers, by class or model type; None where not known."""
    name = (architecture or "").lower().replace("_", "")
    if "conditionalgeneration" in name:  # a multimodal model's language model is a part of it
        return None
    return next((module for family, module in _LAYERS.items() if name.startswith(family)), None)


def _load(source: Path) -> Mapping[str, Mapping[Any, Any]]:
    """The entries of a `.pt` file by hookpoint. HybridError where it holds no such dictionary."""
    if source.suffix not in _SUFFIXES:
        raise HybridError(f"{source}: a steered file must end in .pt, .pth or .csv; found {source.name}; rename it")
    entries = torch_file.load(source, _MAX_BYTES)
    sound = isinstance(entries, dict) and entries and all(isinstance(name, str) for name in entries)
    if not sound or not all(isinstance(entry, dict) for entry in entries.values()):
        raise HybridError(
            f"{source}: a steered file must be a dictionary of dictionaries, one for each hookpoint; found "
            f"another {type(entries).__name__}; see the harness's steered model"
        )
    return entries


def _direction(what: str, name: str, entry: Mapping[Any, Any]) -> Direction:
    """What an entry adds at a layer's output. HybridError where it does anything else."""
    action = entry.get("action")
    if action != "add":
        raise HybridError(
            f"{what}: action must be add, all that a bundle does; found {_shown(action)}; use another entry"
        )
    for field in ("head_index", "bias"):
        if entry.get(field) is not None:
            raise HybridError(
                f"{what}: {field} must be none where a layer's whole output is added to; found "
                f"{_shown(entry[field])}; use another entry"
            )
    layer = direction.layer_of(name)
    assert layer is not None  # `pick` saw to it
    vector = direction.vector_of(entry.get("steering_vector"), f"{what}: steering_vector")
    return Direction(layer, vector, _coefficient(what, entry.get("steering_coefficient", 1.0)))


def _coefficient(what: str, value: Any) -> float:
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise HybridError(f"{what}: steering_coefficient must be a finite number; found {_shown(value)}; mend it")
    return float(value)


def _shown(value: Any) -> str:
    # An int can be too long to be written.
    return reprlib.repr(value) if isinstance(value, (str, float, bool, type(None))) else type(value).__name__
