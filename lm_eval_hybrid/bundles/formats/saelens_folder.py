"""A folder of SAELens: its cfg.json and its tensors, where a bundle's SAE can express them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError, brief

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_ARCHITECTURES = ("standard", "topk", "batchtopk", "jumprelu")


@dataclass(frozen=True)
class SaeLensConfig:
    """The fields of a cfg.json that decide how a bundle's SAE expresses it.

    Attributes:
        k: number of latents active at once, 1 if it is not stated.
        hook, model: the SAE's input in training, if it is stated.
        rescaled: the input is scaled to length sqrt(d_in).
        subtracts: b_dec is subtracted from the input.
        folds: pre-activations are multiplied by the norms of the decoder's rows.
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


def read_config(folder: Path) -> SaeLensConfig:
    """The folder's cfg.json. Raises HybridError if a bundle cannot express the SAE."""
    fields, where = _fields(folder), folder / CONFIG_FILE
    architecture = fields.get("architecture", "standard")
    _require(where, "architecture", architecture, _ARCHITECTURES, "others choose their strongest latent differently")
    activation = fields.get("activation_fn", fields.get("activation_fn_str"))
    _require(where, "activation_fn", activation, (None, "relu", "topk"), "others may change the latents' order")
    normalization = fields.get("normalize_activations")
    linear = (None, False, "none", "constant_norm_rescale")
    fold = normalization == "expected_average_only_in"
    advice = "fold the average norm into the weights" if fold else "others are not linear"
    _require(where, "normalize_activations", normalization, linear, advice)
    reshape = fields.get("reshape_activations")
    _require(where, "reshape_activations", reshape, (None, "none"), "heads are not a residual stream")
    d_in, d_sae = (_count(where, name, fields.get(name)) for name in ("d_in", "d_sae"))
    arguments = fields.get("activation_fn_kwargs")
    k = fields.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if isinstance(k, float) and math.isfinite(k):
        k = math.ceil(k)  # batchtopk's average
    model = fields.get("model_name")
    return SaeLensConfig(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=1 if k is None else _count(where, "k", k),
        hook=hook_of(folder) or None,
        model=model[:100] if isinstance(model, str) else None,
        rescaled=normalization == "constant_norm_rescale",
        subtracts=fields.get("apply_b_dec_to_input", True) is not False,
        folds=architecture != "jumprelu" and fields.get("rescale_acts_by_decoder_norm") is True,
    )


def hook_of(folder: Path) -> str:
    """The hook that the folder's cfg.json names, "" if it names none. Raises HybridError if there is no cfg.json."""
    fields = _fields(folder)
    found = fields.get("hook_name", fields.get("hook_point"))
    return found if isinstance(found, str) else ""


def weights(source: Path, config: SaeLensConfig) -> Mapping[str, Tensor]:
    """The SAE's tensors, float32. Raises HybridError unless they are those of its cfg.json."""
    import torch
    from safetensors.torch import load

    path = source / WEIGHTS_FILE
    data = files.read_regular(path, contents.MAX_BYTES)
    try:
        found = load(data)
    except Exception as error:  # the parser raises errors of many kinds over broken files
        raise HybridError(f"{path}: not a safetensors file ({brief(error)}); copy it again") from None
    shapes = {
        "W_enc": (config.d_in, config.d_sae),
        "b_enc": (config.d_sae,),
        "W_dec": (config.d_sae, config.d_in),
        "b_dec": (config.d_in,),
    }
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            other = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise HybridError(
                f"{path}: {name} is {other}; by {CONFIG_FILE} it must be floats {list(shape)}; copy it again"
            )
    for name in found.keys() - shapes.keys():
        _check_other(path, name, found[name])
    return {name: found[name].to(torch.float32) for name in shapes}


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    data = files.read_regular(path, _MAX_CONFIG_BYTES)
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: not JSON ({brief(error)}); copy it again") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{path}: holds a value of type {type(fields).__name__}; it must be a mapping; copy it again")
    for inner in (fields.get("meta"), fields.get("metadata")):  # SAELens 6; older releases have these at the top
        if isinstance(inner, dict):
            fields |= {name: inner[name] for name in ("hook_name", "model_name") if inner.get(name) is not None}
    return fields


def _require(where: Path, name: str, value: Any, known: tuple[Any, ...], reason: str) -> None:
    # By identity, since 0 == False.
    if not any(value is option or (isinstance(value, str) and value == option) for option in known):
        shown = repr(value)[:80] if isinstance(value, (str, int, float)) else f"of type {type(value).__name__}"
        names = ", ".join(option for option in known if isinstance(option, str))
        raise HybridError(f"{where}: {name} is {shown}; it must be one of {names}: {reason}; use another SAE")


def _count(where: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 24:
        shown = str(value)[:80] if isinstance(value, (str, int, float)) else f"of type {type(value).__name__}"
        raise HybridError(f"{where}: {name} is {shown}; it must be a whole number above 0; copy it again")
    return value


def _check_other(path: Path, name: str, tensor: Tensor) -> None:
    """Raise HybridError if a further tensor might make another latent the strongest than the largest pre-activation."""
    if name == "scaling_factor" and bool((tensor == 1).all()):
        return  # older SAELens wrote it in any case
    if name not in ("threshold", "topk_threshold"):
        raise HybridError(
            f"{path}: has a tensor {name[:80]}; only W_enc, b_enc, W_dec, b_dec and a threshold are known; use another "
            "SAE"
        )
    if tensor.numel() and not bool((tensor == tensor.flatten()[0]).all()):
        raise HybridError(
            f"{path}: the values of {name} differ; they must be equal, so that the largest pre-activation is the "
            "strongest latent; use another SAE"
        )
