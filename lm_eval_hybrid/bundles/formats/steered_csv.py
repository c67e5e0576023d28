"""Rows of the harness's `steered` tables: one feature's decoder row of a sparse coder, added at a hookpoint.

Columns: loader, action, sparse_model, hookpoint, feature_index, steering_coefficient, head_index, sae_id, description.
Only sparse coders in folders are read, one row of their safetensors file. A bundle needs an SAE that tells its
behaviors apart, which rows do not make: so one row becomes a bundle.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles.formats import direction, saelens_folder
from lm_eval_hybrid.bundles.formats.direction import Direction
from lm_eval_hybrid.common import files, strict_yaml
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ImportOptions

_WEIGHTS = {"sparsify": "sae.safetensors", "sae_lens": saelens_folder.WEIGHTS_FILE}
_NEEDED = ("sparse_model", "feature_index", "steering_coefficient")


@dataclass(frozen=True)
class _Row:
    """A row of the table; `what` names it in messages."""

    what: str
    loader: str
    action: str
    model: str
    hookpoint: str
    feature: int
    coefficient: float
    head: str
    description: str

    def __str__(self) -> str:
        return f"feature {self.feature} at {self.hookpoint or 'its own hook'}"


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The bundle of the row that `wanted.latents` (its feature_index) and `wanted.layer` choose.

    Raises:
        HybridError: where that is not one row, or it is not an addition from a sparse coder in a folder.
    """
    rows = _rows(source)
    fitting = [row for row in rows if wanted.latents is None or row.feature in wanted.latents]
    if wanted.layer is not None and len(fitting) > 1:
        fitting = [row for row in fitting if direction.layer_of(row.hookpoint) == wanted.layer]
    if len(fitting) != 1:
        raise HybridError(
            f"{source}: one row becomes a bundle; found {len(fitting)} that fit, of {direction.few(rows)}; "
            "choose one by latents (its feature_index) and layer"
        )
    (row,) = fitting
    if row.action != "add" or row.head:
        kind = f"head_index {row.head[:80]!r}" if row.head else f"action {row.action[:80]!r}"
        raise HybridError(f"{row.what}: must add to a layer's whole output; found {kind}; use another row")
    folder = _folder(source, row)
    hookpoint = row.hookpoint or saelens_folder.hook_of(folder)
    layer = direction.layer_of(hookpoint)
    if layer is None or wanted.layer not in (None, layer):
        needed = "a layer's output, such as layers.3" if layer is None else f"at layer {wanted.layer}"
        raise HybridError(f"{row.what}: hookpoint must be {needed}; found {hookpoint[:80]!r}; use another row")
    vector = decoder_row(folder / _WEIGHTS[row.loader], row.feature)
    description = f"Feature {row.feature} of the sparse coder {folder.name} ({row.loader}), as {source.name} adds it."
    return direction.bundle_of(
        Direction(layer, vector, row.coefficient),
        wanted,
        row.description or f"Feature {row.feature}",
        description,
        f"{source.name}: decoder row {row.feature} of {row.model}, at {hookpoint}: steered, .csv",
    )


def decoder_row(path: Path, latent: int) -> Tensor:
    """Row `latent` of `W_dec` [latents, d] in a safetensors file, [d] float32; the rest of the file is not read.

    Raises:
        HybridError: where there is none.
    """
    import safetensors

    if not path.is_file():
        raise HybridError(f"{path}: the sparse coder needs this file; found none; copy its folder again")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = file.get_slice("W_dec")
            shape = weights.get_shape()
            row = weights[latent] if len(shape) == 2 and latent < shape[0] else None
    # A broken file, or one without W_dec.
    except Exception as error:
        brief = " ".join(str(error).split())[:120]
        raise HybridError(f"{path}: must be a safetensors file with W_dec; found {brief}; copy it again") from None
    if row is None:
        raise HybridError(f"{path}: W_dec must have a row {latent}; found shape {shape}; name another feature")
    return direction.vector_of(row, f"{path}: W_dec[{latent}]")


def _rows(source: Path) -> list[_Row]:
    data = files.read_regular(source, strict_yaml.MAX_BYTES)
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise HybridError(f"{source}: must be a table of comma-separated values; found {error}; mend it") from None
    missing = [name for name in _NEEDED if name not in (table.fieldnames or ())]
    if missing or not lines:
        found = f"no {missing[0]}" if missing else "no rows"
        raise HybridError(f"{source}: needs columns {', '.join(_NEEDED)} and a row; found {found}; mend it")
    return [_row(f"{source}: row {number}", line) for number, line in enumerate(lines, 1)]


def _row(what: str, line: Mapping[str, str | None]) -> _Row:
    def field(name: str, default: str = "") -> str:
        return (line.get(name) or "").strip() or default

    loader, feature, coefficient = field("loader", "sparsify"), field("feature_index"), field("steering_coefficient")
    if loader not in _WEIGHTS:
        raise HybridError(f"{what}: loader must be {' or '.join(_WEIGHTS)}; found {loader[:80]!r}; mend it")
    if not (feature.isascii() and feature.isdecimal() and len(feature) < 10):
        raise HybridError(f"{what}: feature_index must be a whole number; found {feature[:80]!r}; mend it")
    try:
        number = float(coefficient)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HybridError(f"{what}: steering_coefficient must be a finite number; found {coefficient[:80]!r}; mend it")
    return _Row(
        what,
        loader,
        field("action", "add"),
        field("sparse_model"),
        field("hookpoint"),
        int(feature),
        number,
        field("head_index"),
        field("description"),
    )


def _folder(source: Path, row: _Row) -> Path:
    """The folder of a row's sparse coder: from where one is, as the harness looks, else beside the table."""
    # Only a hookpoint that is a module's name is one of a folder, too: it comes from the table.
    parts = [row.hookpoint] if direction.layer_of(row.hookpoint) is not None else []
    for name in (row.model, source.parent / row.model):
        for folder in (Path(name, *parts), Path(name)):
            if row.model and os.path.isfile(folder / _WEIGHTS[row.loader]):
                return folder
    raise HybridError(
        f"{row.what}: sparse_model must be a folder that holds {_WEIGHTS[row.loader]}; found {row.model[:80]!r}; "
        "download it to a folder, and write that folder's path there"
    )
