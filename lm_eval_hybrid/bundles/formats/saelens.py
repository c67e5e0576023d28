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
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.compatibility import card_by_id
from lm_eval_hybrid.bundles.formats import direction, saelens_folder
from lm_eval_hybrid.bundles.formats.saelens_folder import CONFIG_FILE, WEIGHTS_FILE, SaeLensConfig
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

_MANY = 64  # behaviors, unless they are named
_FORM = "6.0.0"  # the first release that reads a cfg.json as it is written here

log = logging.getLogger(__name__)


def read(source: Path, options: ImportOptions) -> Bundle:
    """The SAE in the folder as a bundle's; the decoder's rows of `options.latents` are its steering vectors.

    Args:
        options: `layer`, to steer after, is required; `sae_layer` if cfg.json names no hook; `latents` if the SAE has
            more than 64.

    Raises HybridError if the SAE is unsound, or a bundle cannot express it, or it does not fit the models.
    """
    config = saelens_folder.read_config(source)
    sae_layer = _sae_layer(source, config, options)
    if options.layer is None:
        raise HybridError(f"{source}: no layer is given, and an SAE has none to steer after; give --layer")
    latents = _latents(source, config, options)
    base = card_by_id("base", options.base).hidden_size
    if base != config.d_in:
        raise HybridError(
            f"{source}: decoder rows have width {config.d_in}, {options.base} has {base}; the widths must agree; give "
            "vectors of the base's width and this SAE in a mapping.yaml"
        )
    tensors = _tensors(source, config)
    rows = tensors.pop("rows")
    keys = {latent: f"latent-{latent}" for latent in latents}
    behaviors = [
        {
            "key": key,
            "latent": latent,
            "title": f"Latent {latent}",
            "description": "A latent of the SAE and its decoder row, without a known meaning.",
            "examples": (),
            "tensor": f"vector.{key}",
        }
        for latent, key in keys.items()
    ]
    of = f" of {config.model}" if config.model else ""
    rest = "" if len(keys) == config.d_sae else "; where a latent without a name is the strongest, nothing is added"
    return options.bundle(
        {**tensors, **{f"vector.{key}": rows[latent].clone() for latent, key in keys.items()}},
        behaviors=behaviors,
        steering={"layer": options.layer},
        sae={
            "layer": sae_layer,
            "latents": config.d_sae,
            "k": config.k,
            "normalization": "unit" if config.rescaled else "none",
        },
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
    encoded = {
        CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n",
        WEIGHTS_FILE: save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}),
    }
    with files.atomic_folder(target) as staging:
        files.write_files(staging, encoded)
    return _lost(bundle)


def _lost(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    lines = [
        f"the bias and the steering vectors of {len(manifest.behaviors)} behaviors: an SAE has none",
        "titles, descriptions and examples: its latents are numbers",
        f"when and how to steer (gate {manifest.steering.gate}, select {manifest.steering.select})",
    ]
    if manifest.sae.normalization == "unit":
        if bundle.tensors["sae.mean"].any():
            lines.append("the mean that is subtracted first: residuals are scaled about 0, and categories may differ")
        lines.append("unit length: residuals are scaled to sqrt(d) (constant_norm_rescale), which is equivalent")
    return [*lines, "the models' digests, the training, results, licence and authors"]


def _sae_layer(source: Path, config: SaeLensConfig, options: ImportOptions) -> int:
    layer = options.sae_layer if config.hook is None else direction.layer_of(config.hook)
    if layer is None:
        found = "names no hook" if config.hook is None else f"reads {direction.few([config.hook])}"
        raise HybridError(
            f"{source}: the SAE {found}; it must read the residual stream after a layer (blocks.N.hook_resid_post); "
            f"{'give --sae-layer' if config.hook is None else 'use another SAE'}"
        )
    if options.sae_layer not in (None, layer):
        raise HybridError(
            f"{source}: sae_layer is {options.sae_layer}; {config.hook} reads layer {layer}; leave --sae-layer out"
        )
    return layer


def _latents(source: Path, config: SaeLensConfig, options: ImportOptions) -> tuple[int, ...]:
    """The latents that become behaviors. Raises HybridError also if the SAE is too large for a bundle."""
    if options.latents is None and config.d_sae > _MANY:
        raise HybridError(
            f"{source}: {config.d_sae:,} latents; of more than {_MANY} those that become behaviors must be named; "
            "give --latents"
        )
    latents = tuple(range(config.d_sae)) if options.latents is None else options.latents
    unknown = [latent for latent in latents if not 0 <= latent < config.d_sae]
    if unknown or not latents:
        found = f"no latent {direction.few(unknown)}" if unknown else "no latent is named"
        raise HybridError(f"{source}: {found}; they go from 0 to {config.d_sae - 1}; correct --latents")
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

    given = saelens_folder.weights(source, config)
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
        "sae.encoder.weight": encoder * scale if config.rescaled else encoder,
        "sae.encoder.bias": bias,
        "sae.decoder.weight": rows.T / scale if config.rescaled else rows.T,
        "sae.decoder.bias": given["b_dec"] / scale if config.subtracts else torch.zeros(config.d_in),
        "sae.mean": torch.zeros(config.d_in),
    }
