"""What a run found, as a bundle."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import model_card
from lm_eval_hybrid.bundles.manifest import (
    Behavior,
    Manifest,
    ModelCard,
    SaeSpec,
    SteeringSpec,
    Training,
    first_problem,
)
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.calibration import Setting
from lm_eval_hybrid.discovery.found import Found
from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.traces.pair import Pair
from lm_eval_hybrid.discovery.traces.traces import digest
from lm_eval_hybrid.models.local import LocalBackend

_UNKNOWN = Behavior(key="latent-0", latent=0, title="Latent 0", description="", examples=(), tensor="vector.latent-0")


def check(pair: Pair, recipe: Recipe, name: str, version: str) -> None:
    """That a bundle of any of the recipe's layers can have that name: to be asked before the long work.

    Raises:
        HybridError: it cannot, or a model lacks a layer.
    """
    for layer in recipe.sae.layers:
        sae = SaeSpec(layer=layer, latents=max(recipe.sae.sizes), k=recipe.sae.k)
        training = Training(recipe="none yet", code_version=__version__, data="none yet", holdout={})
        for setting in recipe.calibration.settings:
            _manifest(pair, recipe, name, version, sae, (_UNKNOWN,), training, setting, 0.0)


def bundle(found: Found, pair: Pair, recipe: Recipe, name: str, version: str, samples: Sequence[Path] = ()) -> Bundle:
    """The bundle, not yet saved.

    Args:
        samples: files that the traces are from, where they were given.
    """
    effects = found.effects
    unseen = found.activations[found.held_out.nonzero()[:, 0]].float()
    holdout = {
        "explained_variance": found.chosen.sae.explained(unseen),
        "gate_rate": found.held_out_gates.rate,
        "hit_rate_bias_only": effects.bias_hit_rate,
        "hit_rate": effects.hit_rate,
        "loss_unsteered": effects.base_loss,
        "loss_bias_only": effects.bias_loss,
        "loss": effects.loss,
    }
    for gap, row in zip(found.calibration.gaps, found.calibration.tried, strict=True):
        if (row.fit, row.setting) == (found.calibration.fit, found.calibration.setting) and gap.recovered is not None:
            holdout["gap_recovered"] = gap.recovered
    data = ", ".join(dict.fromkeys(source.data for source in recipe.problems))
    source = f"in {', '.join(path.name for path in samples)}" if samples else f"on problems of {data}"
    holdout = {key: round(value, 4) for key, value in holdout.items()}
    training = Training(
        recipe=recipe.model_dump_json(),
        seed=recipe.seed + found.calibration.fit,
        code_version=__version__,
        data=f"{len(found.traces)} traces of {recipe.thinking} {source}",
        data_sha256=digest(found.traces),
        holdout=holdout,
    )
    entry = found.chosen
    sae = SaeSpec(layer=entry.layer, latents=entry.size, k=entry.sae.k)
    rate = holdout["gate_rate"]
    card = _manifest(pair, recipe, name, version, sae, found.behaviors, training, found.calibration.setting, rate)
    return Bundle(card, _tensors(found))


def _manifest(
    pair: Pair,
    recipe: Recipe,
    name: str,
    version: str,
    sae: SaeSpec,
    behaviors: tuple[Behavior, ...],
    training: Training,
    setting: Setting,
    gate_rate: float,
) -> Manifest:
    try:
        return Manifest(
            name=name,
            version=version,
            description=recipe.description,
            license=recipe.license,
            authors=recipe.authors,
            citation=recipe.citation,
            base=_model(recipe.base, pair.base),
            thinking=_model(recipe.thinking, pair.thinking),
            steering=SteeringSpec(
                layer=recipe.vectors.layer,
                coefficients=setting.coefficients,
                windows=setting.windows,
                select=setting.select,
                gate_rate=gate_rate,
            ),
            sae=sae,
            behaviors=behaviors,
            prompt=recipe.prompt,
            training=training,
        )
    except ValidationError as error:
        raise HybridError(f"{name}/{version}: {first_problem(error)}; mend the recipe, or --out NAME/VERSION") from None


def _model(id: str, backend: LocalBackend) -> ModelCard:
    revision = getattr(backend.config, "_commit_hash", None)  # of a model from the hub
    return model_card(id, backend.config, backend.tokenizer, revision)


def _tensors(found: Found) -> dict[str, Tensor]:
    encoder, fitted = found.chosen.sae.encoder, found.fitted
    tensors = {
        "bias": fitted.bias,
        **{behavior.tensor: fitted.vectors[behavior.latent] for behavior in found.behaviors},
        "sae.encoder.weight": encoder.weight,
        "sae.encoder.bias": encoder.bias,
        "sae.decoder.weight": found.chosen.sae.decoder,
        "sae.decoder.bias": encoder.decoder_bias,
        "sae.mean": encoder.mean,
    }
    if fitted.network is not None:
        tensors |= {
            "coefficient.trunk.weight": fitted.network.trunk_weight,
            "coefficient.trunk.bias": fitted.network.trunk_bias,
            "coefficient.heads.weight": fitted.network.heads_weight,
            "coefficient.heads.bias": fitted.network.heads_bias,
        }
    return tensors
