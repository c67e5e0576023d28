"""Sparse autoencoders of SAELens: a folder with cfg.json and sae_weights.safetensors.

Tensors: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], for JumpReLU also threshold [d_sae]. A
residual x gives (s(x) - b_dec) W_enc + b_enc, where s scales it or leaves it as it is, and b_dec is subtracted only
where cfg.json says apply_b_dec_to_input. A bundle's category is the largest of these: SAEs whose strongest latent is
chosen otherwise are not read.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.formats import direction, models, saelens_folder
from lm_eval_hybrid.bundles.formats.saelens_folder import CONFIG_FILE, WEIGHTS_FILE, Config
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

_MANY = 64  # behaviors, unless they are named
# The first release that reads a cfg.json in the form written here.
_FORM = "6.0.0"

log = logging.getLogger(__name__)


def read(source: Path, wanted: ImportOptions) -> Bundle:
    """The SAE in the folder as a bundle's; the decoder's rows of `wanted.latents` are its steering vectors.

    Args:
        wanted: `layer`, to steer after, is needed; `sae_layer` where cfg.json names no hook; `latents` where the SAE
            has more than 64.

    Raises:
        HybridError: where the SAE cannot be expressed, is not sound, or does not fit the models.
    """
    config = saelens_folder.read_config(source)
    sae_layer = _sae_layer(source, config, wanted)
    if wanted.layer is None:
        raise HybridError(f"{source}: the base's layer to steer after is needed; an SAE has none; give layer")
    latents = _latents(source, config, wanted)
    base = models.card("base", wanted.base, None).hidden_size
    if base != config.d_in:
        raise HybridError(
            f"{source}: decoder rows steer a base of their width, {config.d_in}; found {base} in {wanted.base}; "
            "give vectors of that width and this SAE in a mapping.yaml"
        )
    tensors = _tensors(source, config)
    rows = tensors.pop("rows")
    keys = {latent: f"latent-{latent}" for latent in latents}
    behaviors = [
        {
            "key": key,
            "latent": latent,
            "title": f"Latent {latent}",
            "description": "A latent of the SAE, and its decoder's row; what it stands for is not said.",
            "examples": (),
            "tensor": f"vector.{key}",
        }
        for latent, key in keys.items()
    ]
    of = f" of {config.model}" if config.model else ""
    rest = "" if len(keys) == config.d_sae else ", and by nothing where a latent without a name is the strongest"
    return wanted.bundle(
        {**tensors, **{f"vector.{key}": rows[latent].clone() for latent, key in keys.items()}},
        behaviors=behaviors,
        steering={"layer": wanted.layer},
        sae={
            "layer": sae_layer,
            "latents": config.d_sae,
            "k": config.k,
            "normalization": "unit" if config.rescaled else "none",
        },
        source=f"{source.name}: SAELens, {config.architecture}{of}, {config.hook or 'no hook named'}",
        description=f"The sparse autoencoder {source.name}{of}, steering by the rows of its decoder{rest}.",
    )


def write(bundle: Bundle, chosen: ExportOptions, target: Path) -> list[str]:
    """Write the bundle's SAE, all latents, as a folder that SAELens 6 loads; what is lost, a line each.

    An SAE that reads residuals of unit length becomes one with constant_norm_rescale, which scales them to sqrt(d).

    Raises:
        HybridError: where something is at `target`.
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
    with files.appearing(target) as staging:
        files.write(staging, encoded)
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
    lines.append("the models' digests, how it was made, results, licence and authors")
    return lines


def _sae_layer(source: Path, config: Config, wanted: ImportOptions) -> int:
    layer = wanted.sae_layer if config.hook is None else direction.layer_of(config.hook)
    if layer is None:
        found = "no hook" if config.hook is None else direction.few([config.hook])
        raise HybridError(
            f"{source}: the SAE must read the residual stream after a layer (blocks.N.hook_resid_post); found {found}; "
            f"{'give sae_layer' if config.hook is None else 'use another SAE'}"
        )
    if wanted.sae_layer not in (None, layer):
        raise HybridError(
            f"{source}: sae_layer must be that of {config.hook}, {layer}; found {wanted.sae_layer}; leave it out"
        )
    return layer


def _latents(source: Path, config: Config, wanted: ImportOptions) -> tuple[int, ...]:
    """The latents that become behaviors; HybridError also where so large an SAE cannot be a bundle's at all."""
    if wanted.latents is None and config.d_sae > _MANY:
        raise HybridError(
            f"{source}: of more than {_MANY} latents those that become behaviors must be named; found "
            f"{config.d_sae:,}; give latents"
        )
    latents = tuple(range(config.d_sae)) if wanted.latents is None else wanted.latents
    unknown = [latent for latent in latents if not 0 <= latent < config.d_sae]
    if unknown or not latents:
        raise HybridError(
            f"{source}: latents must be from 0 to {config.d_sae - 1}; found {direction.few(unknown) or 'none'}; "
            "mend them"
        )
    size = 4 * config.d_in * (2 * config.d_sae + len(latents))
    if size > contents.MAX_BYTES:
        raise HybridError(
            f"{source}: a bundle's tensors must have at most {contents.MAX_BYTES:,} bytes; found {size:,} for all "
            f"{config.d_sae:,} latents; name some in a mapping.yaml, as an SAE of their own"
        )
    return latents


def _tensors(source: Path, config: Config) -> dict[str, Tensor]:
    """The bundle's sae.* tensors and its bias, and `rows` [d_sae, d_in], the decoder's: all float32."""
    import torch

    given = saelens_folder.weights(source, config)
    encoder, bias, rows = given["W_enc"].T, given["b_enc"], given["W_dec"]
    if config.folds:
        norms = rows.norm(dim=1, keepdim=True)
        encoder, bias, rows = encoder * norms, bias * norms[:, 0], rows / norms
    # Length sqrt(d_in) instead of 1 is a factor: s (x - b / s) is s x - b.
    scale = math.sqrt(config.d_in) if config.rescaled else 1.0
    if not config.subtracts and given["b_dec"].any():
        log.warning("%s: b_dec is added to what the SAE puts out and not subtracted: it is left out", source)
    return {
        "rows": rows,
        "bias": torch.zeros(config.d_in),
        "sae.encoder.weight": encoder * scale if config.rescaled else encoder,
        "sae.encoder.bias": bias,
        "sae.decoder.weight": rows.T / scale if config.rescaled else rows.T,
        "sae.decoder.bias": given["b_dec"] / scale if config.subtracts else torch.zeros(config.d_in),
        "sae.mean": torch.zeros(config.d_in),
    }
