"""Sparse autoencoders of SAELens: a folder with cfg.json and sae_weights.safetensors.

Tensors: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], for JumpReLU also threshold [d_sae]. The
pre-activations of a residual x are (s(x) - b_dec) W_enc + b_enc, where s scales x or leaves it unchanged, and b_dec is
subtracted only if cfg.json says apply_b_dec_to_input. A bundle's category is the largest pre-activation: an SAE whose
strongest latent is chosen otherwise is refused.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.compatibility import card_by_id
from lm_eval_hybrid.bundles.formats import direction, foreign
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MANY = 64  # behaviors, unless they are named
_FORM = "6.0.0"  # the first release that reads a cfg.json as it is written here
# Of each field the values under which the largest pre-activation is the strongest latent, and why no others.
_KNOWN: dict[str, tuple[tuple[object, ...], str]] = {
    "architecture": (("standard", "topk", "batchtopk", "jumprelu"), "others choose their strongest latent differently"),
    "activation_fn": ((None, "relu", "topk"), "others may change the latents' order"),
    "normalize_activations": ((None, False, "none", "constant_norm_rescale"), "others are not linear"),
    "reshape_activations": ((None, "none"), "heads are not a residual stream"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaeLensConfig:
    """The fields of a cfg.json that decide how a bundle expresses the SAE.

    Attributes:
        k: number of latents active at once, 1 if it is not stated.
        hook, model: the SAE's input in training, "" if it is not stated.
        rescaled: the input is scaled to length sqrt(d_in).
        subtracts: b_dec is subtracted from the input.
        folds: pre-activations are multiplied by the norms of the decoder's rows.
    """

    architecture: str
    d_in: int
    d_sae: int
    k: int
    hook: str
    model: str
    rescaled: bool
    subtracts: bool
    folds: bool


def read(source: Path, options: ImportOptions) -> Bundle:
    """The SAE in the folder as a bundle's; the decoder's rows of `options.latents` are its steering vectors.

    Args:
        options: `layer`, to steer after, is required; `sae_layer` if cfg.json names no hook; `latents` if the SAE has
            more than 64.

    Raises HybridError if the SAE is unsound, or a bundle cannot express it, or it does not fit the models.
    """
    config = read_config(source)
    sae_layer = _sae_layer(source, config, options)
    if options.layer is None:
        raise HybridError(f"{source}: no layer is given, and an SAE has none to steer after; give --layer")
    keys = {latent: f"latent-{latent}" for latent in _latents(source, config, options)}
    base = card_by_id("base", options.base).hidden_size
    if base != config.d_in:
        raise HybridError(
            f"{source}: decoder rows have width {config.d_in}, {options.base} has {base}; the widths must agree; give "
            "vectors of the base's width and this SAE in a mapping.yaml"
        )
    tensors = _tensors(source, config)
    rows = tensors.pop("rows")
    words = {"description": "A latent of the SAE and its decoder row, without a known meaning.", "examples": ()}
    behaviors = [
        {**words, "key": key, "latent": latent, "title": f"Latent {latent}", "tensor": f"vector.{key}"}
        for latent, key in keys.items()
    ]
    of = f" of {config.model}" if config.model else ""
    rest = "" if len(keys) == config.d_sae else "; where a latent without a name is the strongest, nothing is added"
    normalization = "unit" if config.rescaled else "none"
    return options.bundle(
        {**tensors, **{f"vector.{key}": rows[latent].clone() for latent, key in keys.items()}},
        behaviors=behaviors,
        steering={"layer": options.layer},
        sae={"layer": sae_layer, "latents": config.d_sae, "k": config.k, "normalization": normalization},
        source=f"{source.name}: SAELens, {config.architecture}{of}, {config.hook or 'no hook named'}",
        description=f"The sparse autoencoder {source.name}{of}, steering by the rows of its decoder{rest}.",
    )


def write(bundle: Bundle, options: ExportOptions, target: Path) -> list[str]:
    """Write the bundle's SAE, all latents, as a folder for SAELens 6; returns what is lost, a line each.

    An SAE that reads residuals of unit length becomes one with constant_norm_rescale, which scales them to sqrt(d).
    Raises HybridError if `target` exists.
    """
    from safetensors.torch import save

    direction.check_new(target)
    manifest, given = bundle.manifest, bundle.tensors
    unit, width = manifest.sae.normalization == "unit", manifest.thinking.hidden_size
    scale = math.sqrt(width) if unit else 1.0
    tensors = {
        "W_enc": given["sae.encoder.weight"].T / scale,
        "b_enc": given["sae.encoder.bias"],
        "W_dec": given["sae.decoder.weight"].T * scale,
        "b_dec": given["sae.decoder.bias"] * scale,
    }
    config = {
        "architecture": "topk",
        "k": manifest.sae.k,
        "d_in": width,
        "d_sae": manifest.sae.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale" if unit else "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": manifest.thinking.id,
            "hook_name": f"blocks.{manifest.sae.layer}.hook_resid_post",
            "sae_lens_version": _FORM,
            "sae_lens_training_version": None,
        },
    }
    weights = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    with files.atomic_folder(target) as staging:
        files.write_files(staging, {CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n", WEIGHTS_FILE: weights})
    lost = [
        f"the bias and the steering vectors of {len(manifest.behaviors)} behaviors: an SAE has none",
        "titles, descriptions and examples: its latents are numbers",
        f"when and how to steer (gate {manifest.steering.gate}, select {manifest.steering.select})",
    ]
    if unit and given["sae.mean"].any():
        lost.append("the mean that is subtracted first: residuals are scaled about 0, and categories may differ")
    if unit:
        lost.append("unit length: residuals are scaled to sqrt(d) (constant_norm_rescale), which is equivalent")
    return [*lost, "the models' digests, the training, results, licence and authors"]


def read_config(folder: Path) -> SaeLensConfig:
    """The folder's cfg.json. Raises HybridError if a bundle cannot express the SAE."""
    fields, where = _fields(folder), folder / CONFIG_FILE
    stated = {name: fields.get(name) for name in _KNOWN}
    stated["architecture"] = fields.get("architecture", "standard")
    stated["activation_fn"] = fields.get("activation_fn", fields.get("activation_fn_str"))
    for name, (known, reason) in _KNOWN.items():
        value = stated[name]
        # By identity, since 0 == False.
        if not any(value is option or (isinstance(value, str) and value == option) for option in known):
            names = ", ".join(option for option in known if isinstance(option, str))
            if value == "expected_average_only_in":
                reason = "fold the average norm into the weights"
            raise HybridError(
                f"{where}: {name} is {_shown(value)}; it must be one of {names}: {reason}; use another SAE"
            )
    arguments = fields.get("activation_fn_kwargs")
    k = fields.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if isinstance(k, float) and math.isfinite(k):
        k = math.ceil(k)  # batchtopk's average
    for name, value in (("d_in", fields.get("d_in")), ("d_sae", fields.get("d_sae")), ("k", 1 if k is None else k)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 24:
            raise HybridError(f"{where}: {name} is {_shown(value)}; it must be a whole number above 0; copy it again")
    model = fields.get("model_name")
    architecture = str(stated["architecture"])
    return SaeLensConfig(
        architecture=architecture,
        d_in=fields["d_in"],
        d_sae=fields["d_sae"],
        k=1 if k is None else k,
        hook=hook_of(folder),
        model=model[:100] if isinstance(model, str) else "",
        rescaled=stated["normalize_activations"] == "constant_norm_rescale",
        subtracts=fields.get("apply_b_dec_to_input", True) is not False,
        folds=architecture != "jumprelu" and fields.get("rescale_acts_by_decoder_norm") is True,
    )


def hook_of(folder: Path) -> str:
    """The hook that the folder's cfg.json names, "" if it names none. Raises HybridError if there is no cfg.json."""
    fields = _fields(folder)
    found = fields.get("hook_name", fields.get("hook_point"))
    return found if isinstance(found, str) else ""


def _fields(folder: Path) -> dict[str, Any]:
    fields = foreign.load_json(folder / CONFIG_FILE, _MAX_CONFIG_BYTES)
    for inner in (fields.get("meta"), fields.get("metadata")):  # SAELens 6; older releases have these at the top
        if isinstance(inner, dict):
            fields |= {name: inner[name] for name in ("hook_name", "model_name") if inner.get(name) is not None}
    return fields


def _shown(value: object) -> str:
    return repr(value)[:80] if isinstance(value, (str, int, float)) else f"of type {type(value).__name__}"


def _sae_layer(source: Path, config: SaeLensConfig, options: ImportOptions) -> int:
    layer = direction.layer_of(config.hook) if config.hook else options.sae_layer
    if layer is None:
        found = f"reads {foreign.few([config.hook])}" if config.hook else "names no hook"
        advice = "use another SAE" if config.hook else "give --sae-layer"
        needed = "it must read the residual stream after a layer (blocks.N.hook_resid_post)"
        raise HybridError(f"{source}: the SAE {found}; {needed}; {advice}")
    if options.sae_layer not in (None, layer):
        found = f"sae_layer is {options.sae_layer}"
        raise HybridError(f"{source}: {found}; {config.hook} reads layer {layer}; leave --sae-layer out")
    return layer


def _latents(source: Path, config: SaeLensConfig, options: ImportOptions) -> tuple[int, ...]:
    """The latents that become behaviors. Raises HybridError also if the SAE is too large for a bundle."""
    if options.latents is None and config.d_sae > _MANY:
        found = f"{config.d_sae:,} latents"
        raise HybridError(f"{source}: {found}; if there are more than {_MANY}, name those to import; give --latents")
    latents = foreign.chosen(source, options.latents, range(config.d_sae))
    size = 4 * config.d_in * (2 * config.d_sae + len(latents))
    if size > contents.MAX_BYTES:
        raise HybridError(
            f"{source}: all {config.d_sae:,} latents take {size:,} bytes; a bundle holds at most "
            f"{contents.MAX_BYTES:,}; name some in a mapping.yaml, as an SAE of their own"
        )
    return latents


def _tensors(source: Path, config: SaeLensConfig) -> dict[str, Tensor]:
    """The bundle's sae.* tensors and bias, and the decoder's `rows` [d_sae, d_in]: all float32."""
    import torch

    given = _weights(source, config)
    encoder, bias, rows = given["W_enc"].T, given["b_enc"], given["W_dec"]
    if config.folds:
        norms = rows.norm(dim=1, keepdim=True)
        encoder, bias, rows = encoder * norms, bias * norms[:, 0], rows / norms
    # Length sqrt(d_in) instead of 1 is a factor: s (x - b / s) is s x - b.
    scale = math.sqrt(config.d_in) if config.rescaled else 1.0
    if not config.subtracts and given["b_dec"].any():
        log.warning("%s: b_dec is left out: it is added to the SAE's output, not subtracted from its input", source)
    return {
        "rows": rows,
        "bias": torch.zeros(config.d_in),
        "sae.encoder.weight": encoder * scale,
        "sae.encoder.bias": bias,
        "sae.decoder.weight": rows.T / scale,
        "sae.decoder.bias": given["b_dec"] / scale if config.subtracts else torch.zeros(config.d_in),
        "sae.mean": torch.zeros(config.d_in),
    }


def _weights(source: Path, config: SaeLensConfig) -> Mapping[str, Tensor]:
    """The SAE's tensors, float32. Raises HybridError unless they are those of its cfg.json."""
    import torch

    path = source / WEIGHTS_FILE
    found = foreign.load_safetensors(path, files.read_regular(path, contents.MAX_BYTES))
    d_in, d_sae = config.d_in, config.d_sae
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            other = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            needed = f"by {CONFIG_FILE} it must be floats {list(shape)}"
            raise HybridError(f"{path}: {name} is {other}; {needed}; copy it again")
    for name in found.keys() - shapes.keys():
        _check_other(path, name, found[name])
    return {name: found[name].to(torch.float32) for name in shapes}


def _check_other(path: Path, name: str, tensor: Tensor) -> None:
    """Raise HybridError if a further tensor might make another latent the strongest than the largest pre-activation."""
    if name == "scaling_factor" and bool((tensor == 1).all()):
        return  # older SAELens wrote it in any case
    if name not in ("threshold", "topk_threshold"):
        needed = "only W_enc, b_enc, W_dec, b_dec and a threshold are known"
        raise HybridError(f"{path}: has a tensor {name[:80]}; {needed}; use another SAE")
    if tensor.numel() and not bool((tensor == tensor.flatten()[0]).all()):
        needed = "they must be equal, so that the largest pre-activation is the strongest latent"
        raise HybridError(f"{path}: the values of {name} differ; {needed}; use another SAE")
