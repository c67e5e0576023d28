"""Files of the harness's model `steered`: `.pt` holds vectors by module, `.csv` names features of sparse coders.

A `.pt` file is a dictionary {hookpoint: {steering_vector, steering_coefficient, action, bias, head_index}} that
torch.save wrote. The harness unpickles whatever it is given; here nothing is executed (see `foreign`).

A row of a `.csv` adds a decoder row of a sparse coder at a hookpoint; only coders in folders are read. One row becomes
a bundle, since rows come without an SAE that could tell several behaviors apart.
"""

from __future__ import annotations

import csv
import io
import math
import os
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import direction, foreign, saelens
from lm_eval_hybrid.bundles.formats.direction import Direction
from lm_eval_hybrid.common import files, strict_yaml
from lm_eval_hybrid.common.errors import HybridError, brief

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

_SUFFIXES = (".pt", ".pth")
_MAX_BYTES = 1 << 26  # a vector for every layer of the largest models takes a tenth
_USUAL = "layers"
# Where a causal model's base_model keeps its layers, by the first letters of the architecture's name.
_LAYERS = {
    "gptneox": _USUAL,  # before gptneo
    **dict.fromkeys(("gptneo", "gpt2", "gptj", "gptbigcode", "bloom", "codegen", "falconforcausallm"), "h"),
    "mptforcausallm": "blocks",
    "opt": "decoder.layers",
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "phi", "olmo", "granite", "cohere", "stablelm"),
        _USUAL,
    ),
}
_WEIGHTS = {"sparsify": "sae.safetensors", "sae_lens": saelens.WEIGHTS_FILE}
_COLUMNS = ("sparse_model", "feature_index", "steering_coefficient")
_OPTIONAL_COLUMNS = ("loader", "action", "hookpoint", "head_index", "description")


def read(source: Path, options: ImportOptions) -> Bundle:
    """The bundle of one `add` entry: gate always, its coefficient fixed, all positions, as the harness steers.

    Args:
        options: `layer` chooses among several entries, and `latents` (the feature_index) among rows of a `.csv`.

    Raises HybridError if the file is unsound, or has no such entry.
    """
    if source.suffix.lower() == ".csv":
        return _read_csv(source, options)
    entries = _load(source)
    name = direction.pick(source, {name: direction.layer_of(name) for name in entries}, options.layer)
    found = _direction(f"{source}: {name}", name, entries[name])
    description = f"The vector that {source.name} steers {name} by, a file of lm-evaluation-harness's steered model."
    return direction.bundle_of(found, options, "Steering vector", description, f"{source.name}, {name}: steered, .pt")


def write(bundle: Bundle, options: ExportOptions, target: Path) -> list[str]:
    """Write bias + vector of one behavior as a `.pt` file for `--model steered`; returns what is lost, a line each.

    Raises HybridError if `target` exists or has another suffix, or the options fit no behavior.
    """
    import torch

    if target.suffix not in _SUFFIXES:
        raise HybridError(f"{target}: ends in {target.suffix!r}; the harness reads .pt or .pth; rename it")
    direction.check_new(target)
    chosen = direction.choose(bundle, options)
    lost = direction.lost(bundle, chosen)
    architecture = bundle.manifest.base.architecture
    module = layers_module(architecture)
    if module is None:
        lost.append(
            f"the module of the layers in the base ({architecture or 'of unknown architecture'}): "
            f"{_USUAL}.{chosen.layer} is written; rename it if model.base_model calls them otherwise"
        )
    entry = {
        "steering_vector": chosen.vector.contiguous().clone(),
        "steering_coefficient": chosen.coefficient,
        "action": "add",
        "bias": None,
        "head_index": None,
    }
    buffer = io.BytesIO()
    torch.save({f"{module or _USUAL}.{chosen.layer}": entry}, buffer)
    files.write_file(target, buffer.getvalue())
    return lost


def layers_module(architecture: str | None) -> str | None:
    """The module of a model's `base_model` that holds its layers, by class or model type; None if unknown."""
    name = (architecture or "").lower().replace("_", "")
    if "conditionalgeneration" in name:  # in a multimodal model the language model is a part of base_model
        return None
    return next((module for family, module in _LAYERS.items() if name.startswith(family)), None)


def _load(source: Path) -> Mapping[str, Mapping[Any, Any]]:
    """The entries of a `.pt` file by hookpoint. Raises HybridError if it holds no such dictionary."""
    if source.suffix not in _SUFFIXES:
        raise HybridError(f"{source}: ends in {source.suffix!r}; a steered file is .pt, .pth or .csv; rename it")
    entries = foreign.load_torch(source, _MAX_BYTES)
    sound = isinstance(entries, dict) and entries and all(isinstance(name, str) for name in entries)
    if not sound or not all(isinstance(entry, dict) for entry in entries.values()):
        found, needed = f"another value of type {type(entries).__name__}", "a steered file has a dictionary a hookpoint"
        raise HybridError(f"{source}: holds {found}; {needed}; see the harness's steered model")
    return entries


def _direction(what: str, name: str, entry: Mapping[Any, Any]) -> Direction:
    """The vector that an entry adds to a layer's output. Raises HybridError if it does anything else."""
    import torch

    action = entry.get("action")
    if action != "add":
        raise HybridError(f"{what}: action is {_shown(action)}; a bundle can only add; use another entry")
    for field in ("head_index", "bias"):
        if entry.get(field) is not None:
            needed = "it must be None to add to a layer's whole output"
            raise HybridError(f"{what}: {field} is {_shown(entry[field])}; {needed}; use another entry")
    layer = direction.layer_of(name)
    assert layer is not None  # `pick` has checked
    vector = direction.vector_of(entry.get("steering_vector"), f"{what}: steering_vector")
    value = entry.get("steering_coefficient", 1.0)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        found = f"steering_coefficient is {_shown(value)}"
        raise HybridError(f"{what}: {found}; it must be a finite number; use another entry")
    return Direction(layer, vector, float(value))


def _shown(value: Any) -> str:
    # An int can be too long to print.
    return (
        reprlib.repr(value) if isinstance(value, (str, float, bool, type(None))) else f"of type {type(value).__name__}"
    )


@dataclass(frozen=True)
class _Row:
    """A row of a `.csv` file, by its columns; `what` names it in errors."""

    what: str
    loader: str
    action: str
    sparse_model: str
    hookpoint: str
    feature_index: int
    coefficient: float
    head_index: str
    description: str

    def __str__(self) -> str:
        return f"feature {self.feature_index} at {self.hookpoint or 'its own hook'}"


def _read_csv(source: Path, options: ImportOptions) -> Bundle:
    """The bundle of the one row that `options.latents` and `options.layer` choose."""
    rows = _rows(source)
    fitting = [row for row in rows if options.latents is None or row.feature_index in options.latents]
    if options.layer is not None and len(fitting) > 1:
        fitting = [row for row in fitting if direction.layer_of(row.hookpoint) == options.layer]
    if len(fitting) != 1:
        found, advice = (
            f"{len(fitting)} rows fit, of {foreign.few(rows)}",
            "--latents (its feature_index) and --layer",
        )
        raise HybridError(f"{source}: {found}; one row becomes a bundle; choose it with {advice}")
    (row,) = fitting
    if row.action != "add" or row.head_index:
        found = f"head_index {row.head_index[:80]!r}" if row.head_index else f"action {row.action[:80]!r}"
        raise HybridError(f"{row.what}: has {found}; it must add to a layer's whole output; use another row")
    folder = _coder_folder(source, row)
    hookpoint = row.hookpoint or saelens.hook_of(folder)
    layer = direction.layer_of(hookpoint)
    if layer is None or options.layer not in (None, layer):
        needed = "a layer's output, such as layers.3" if layer is None else f"at layer {options.layer}"
        raise HybridError(f"{row.what}: hookpoint is {hookpoint[:80]!r}; it must be {needed}; use another row")
    name = f"Feature {row.feature_index}"
    return direction.bundle_of(
        Direction(layer, decoder_row(folder / _WEIGHTS[row.loader], row.feature_index), row.coefficient),
        options,
        row.description or name,
        f"{name} of the sparse coder {folder.name} ({row.loader}), as {source.name} adds it.",
        f"{source.name}: decoder row {row.feature_index} of {row.sparse_model}, at {hookpoint}: steered, .csv",
    )


def decoder_row(path: Path, latent: int) -> Tensor:
    """Row `latent` of `W_dec` [latents, d] in a safetensors file, [d] float32; reads no other part of the file.

    Raises HybridError if there is no such row.
    """
    import safetensors

    if not path.is_file():
        raise HybridError(f"{path}: no such file; the sparse coder needs it; copy its folder again")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = file.get_slice("W_dec")
            shape = weights.get_shape()
            row = weights[latent] if len(shape) == 2 and latent < shape[0] else None
    except Exception as error:  # a broken file, or one without W_dec
        raise HybridError(f"{path}: {brief(error)}; a safetensors file with W_dec is needed; copy it again") from None
    if row is None:
        raise HybridError(f"{path}: W_dec has shape {shape}; it must have a row {latent}; name another feature")
    return direction.vector_of(row, f"{path}: W_dec[{latent}]")


def _rows(source: Path) -> list[_Row]:
    data = files.read_regular(source, strict_yaml.MAX_BYTES)
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise HybridError(f"{source}: not a table of comma-separated values ({error}); correct it") from None
    missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
    if missing or not lines:
        found = f"no column {missing[0]}" if missing else "no rows"
        raise HybridError(f"{source}: {found}; it needs columns {', '.join(_COLUMNS)} and a row; correct it")
    return [_row(f"{source}: row {number}", line) for number, line in enumerate(lines, 1)]


def _row(what: str, line: Mapping[str, str | None]) -> _Row:
    texts = {name: (line.get(name) or "").strip() for name in (*_COLUMNS, *_OPTIONAL_COLUMNS)}
    loader, action = texts.pop("loader") or "sparsify", texts.pop("action") or "add"
    feature, coefficient = texts.pop("feature_index"), texts.pop("steering_coefficient")
    if loader not in _WEIGHTS:
        raise HybridError(f"{what}: loader is {loader[:80]!r}; it must be {' or '.join(_WEIGHTS)}; correct it")
    if not (feature.isascii() and feature.isdecimal() and len(feature) < 10):
        raise HybridError(f"{what}: feature_index is {feature[:80]!r}; it must be a whole number; correct it")
    try:
        number = float(coefficient)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        found = f"steering_coefficient is {coefficient[:80]!r}"
        raise HybridError(f"{what}: {found}; it must be a finite number; correct it")
    return _Row(what, loader=loader, action=action, feature_index=int(feature), coefficient=number, **texts)


def _coder_folder(source: Path, row: _Row) -> Path:
    """The folder of a row's sparse coder: relative to the working directory, as for the harness, or to the table."""
    # Only a hookpoint that is a module's name can also be a folder's: it comes from the table.
    parts = [row.hookpoint] if direction.layer_of(row.hookpoint) is not None else []
    for name in (row.sparse_model, source.parent / row.sparse_model):
        for folder in (Path(name, *parts), Path(name)):
            if row.sparse_model and os.path.isfile(folder / _WEIGHTS[row.loader]):
                return folder
    found = f"no {_WEIGHTS[row.loader]} in sparse_model {row.sparse_model[:80]!r}"
    raise HybridError(
        f"{row.what}: {found}; it must be a folder; download the coder, and write its folder's path there"
    )
