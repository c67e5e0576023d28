"""A folder of SAELens: what its cfg.json says, and its tensors, as far as a bundle's SAE can be the same one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu")


@dataclass(frozen=True)
class Config:
    """What cfg.json says, where it can be a bundle's SAE.

    Attributes:
        k: how many latents are active at once, 1 where that is not said.
        hook, model: what it read in training, where that is said.
        rescaled: whether what comes in is scaled to length sqrt(d_in).
        subtracts: whether b_dec is subtracted from what comes in.
        folds: whether pre-activations are multiplied by the norms of the decoder's rows.
    """

    architecture: str
    d_in: int
    d_sae: int
    k: int
    hook: str | None
    model: str | None
    rescaled: bool
    subtracts: bool
    folds: bool


def read_config(folder: Path) -> Config:
    """cfg.json as a bundle needs it. HybridError where its latents cannot be a bundle's."""
    fields, where = _fields(folder), folder / CONFIG_FILE
    architecture = fields.get("architecture", "standard")
    _require(where, "architecture", architecture, _ARCHITECTURES, "its strongest latent is chosen otherwise")
    activation = fields.get("activation_fn", fields.get("activation_fn_str"))
    _require(where, "activation_fn", activation, (None, "relu", "topk"), "others may not keep the latents' order")
    normalization = fields.get("normalize_activations")
    _require(
        where,
        "normalize_activations",
        normalization,
        (None, False, "none", "constant_norm_rescale"),
        "fold the average norm into the weights" if normalization == "expected_average_only_in" else "it is not linear",
    )
    _require(
        where, "reshape_activations", fields.get("reshape_activations"), (None, "none"), "heads are not a residual"
    )
    d_in, d_sae = (_whole(where, name, fields.get(name)) for name in ("d_in", "d_sae"))
    arguments = fields.get("activation_fn_kwargs")
    k = fields.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if isinstance(k, float) and math.isfinite(k):
        k = math.ceil(k)  # batchtopk's average
    hook, model = (value if isinstance(value, str) else None for value in (hook_of(folder), fields.get("model_name")))
    return Config(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=1 if k is None else _whole(where, "k", k),
        hook=hook or None,
        model=model and model[:100],
        rescaled=normalization == "constant_norm_rescale",
        subtracts=fields.get("apply_b_dec_to_input", True) is not False,
        folds=architecture != "jumprelu" and fields.get("rescale_acts_by_decoder_norm") is True,
    )


def hook_of(folder: Path) -> str:
    """The hook that an SAE's cfg.json names, empty where it names none. HybridError where there is no cfg.json."""
    fields = _fields(folder)
    found = fields.get("hook_name", fields.get("hook_point"))
    return found if isinstance(found, str) else ""


def weights(source: Path, config: Config) -> Mapping[str, Tensor]:
    """The tensors of the weights' file, float32. HybridError where they are not those that cfg.json tells of."""
    import torch
    from safetensors.torch import load

    path = source / WEIGHTS_FILE
    if not path.is_file():
        raise HybridError(f"{source}: an SAE's folder must hold {WEIGHTS_FILE}; found none; copy the folder again")
    try:
        found = load(files.read_regular(path, contents.MAX_BYTES))
    except HybridError:
        raise
    # Whatever a broken file makes of the parser.
    except Exception as error:
        raise HybridError(f"{path}: must be a safetensors file; found {_brief(error)}; copy it again") from None
    shapes = {
        "W_enc": (config.d_in, config.d_sae),
        "b_enc": (config.d_sae,),
        "W_dec": (config.d_sae, config.d_in),
        "b_dec": (config.d_in,),
    }
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            other = "none" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
            raise HybridError(
                f"{path}: {name} must be floats {list(shape)} by {CONFIG_FILE}; found {other}; copy it again"
            )
    _check_others(path, {name: tensor for name, tensor in found.items() if name not in shapes})
    return {name: found[name].to(torch.float32) for name in shapes}


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise HybridError(f"{folder}: an SAE's folder must hold {CONFIG_FILE}; found none; give the folder that does")
    try:
        fields = json.loads(files.read_regular(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: must be JSON; found {_brief(error)}; copy it again") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{path}: must be a mapping; found {type(fields).__name__}; copy it again")
    for inner in (fields.get("meta"), fields.get("metadata")):  # SAELens 6; before it these were at the top
        if isinstance(inner, dict):
            fields |= {name: inner[name] for name in ("hook_name", "model_name") if inner.get(name) is not None}
    return fields


def _require(where: Path, name: str, value: object, known: tuple[object, ...], why: str) -> None:
    if not any(value is one or (isinstance(value, str) and value == one) for one in known):
        shown = repr(value)[:80] if isinstance(value, (str, int, float)) else type(value).__name__
        choices = ", ".join(str(one) for one in known if isinstance(one, str))
        raise HybridError(f"{where}: {name} must be one of {choices}; found {shown}: {why}; use another SAE")


def _whole(where: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 24:
        shown = str(value)[:80] if isinstance(value, (str, int, float)) else type(value).__name__
        raise HybridError(f"{where}: {name} must be a whole number above 0; found {shown}; copy it again")
    return value


def _check_others(path: Path, others: Mapping[str, Tensor]) -> None:
    """HybridError where further tensors might make another latent the strongest than the largest pre-activation's."""
    for name, tensor in others.items():
        if name == "scaling_factor" and bool((tensor == 1).all()):
            continue  # older SAELens wrote it in any case
        if name not in ("threshold", "topk_threshold"):
            raise HybridError(
                f"{path}: W_enc, b_enc, W_dec, b_dec and a threshold are known; found {name[:80]}; use another SAE"
            )
        if tensor.numel() and not bool((tensor == tensor.flatten()[0]).all()):
            raise HybridError(
                f"{path}: the strongest latent must be the one of the largest pre-activation, as with one {name} for "
                "all; found thresholds that differ; use another SAE"
            )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
