"""Makes a bundle of a discovery result."""

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
from lm_eval_hybrid.discovery.calibration import SteeringSetting
from lm_eval_hybrid.discovery.pipeline import DiscoveryResult
from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import digest
from lm_eval_hybrid.models.protocol import LanguageModel

_PLACEHOLDER = Behavior(
    key="latent-0", latent=0, title="Latent 0", description="", examples=(), tensor="vector.latent-0"
)


def check_manifest(pair: ModelPair, recipe: DiscoveryRecipe, name: str, version: str) -> None:
    """Check before the long work that the recipe can end in a valid bundle of this name, whichever layer is chosen.

    Raises:
        HybridError: the name or version is invalid, a model lacks a layer, or a setting is invalid.
    """
    for layer in recipe.sae.layers:
        sae = SaeSpec(layer=layer, latents=max(recipe.sae.sizes), k=recipe.sae.k)
        training = Training(recipe="pending", code_version=__version__, data="pending", holdout={})
        for setting in recipe.calibration.settings:
            _manifest(pair, recipe, name, version, sae, (_PLACEHOLDER,), training, setting, 0.0)


def make_bundle(
    result: DiscoveryResult,
    pair: ModelPair,
    recipe: DiscoveryRecipe,
    name: str,
    version: str,
    samples: Sequence[Path] = (),
) -> Bundle:
    """The bundle, not yet saved.

    Args:
        samples: the files of the traces, if they were given.
    """
    chosen, calibration = result.chosen, result.calibration
    training = Training(
        recipe=recipe.model_dump_json(),
        seed=recipe.seed + calibration.fit,
        code_version=__version__,
        data=_data(result, recipe, samples),
        data_sha256=digest(result.traces),
        holdout=_holdout(result),
    )
    sae = SaeSpec(layer=chosen.layer, latents=chosen.size, k=chosen.sae.k)
    rate = training.holdout["gate_rate"]
    manifest = _manifest(pair, recipe, name, version, sae, result.behaviors, training, calibration.setting, rate)
    return Bundle(manifest, _tensors(result))


def _data(result: DiscoveryResult, recipe: DiscoveryRecipe, samples: Sequence[Path]) -> str:
    """The training data in words."""
    if samples:
        source = f"in {', '.join(path.name for path in samples)}"
    else:
        source = f"on problems of {', '.join(dict.fromkeys(source.data for source in recipe.problems))}"
    return f"{len(result.traces)} traces of {recipe.thinking} {source}"


def _holdout(result: DiscoveryResult) -> dict[str, float]:
    """Metrics on held-out data, by their names in the manifest."""
    effects = result.effects
    activations = result.activations[result.held_out.nonzero()[:, 0]].float()
    metrics = {
        "explained_variance": result.chosen.sae.explained(activations),
        "gate_rate": result.held_out_gates.rate,
        "hit_rate_bias_only": effects.bias_hit_rate,
        "hit_rate": effects.hit_rate,
        "loss_unsteered": effects.base_loss,
        "loss_bias_only": effects.bias_loss,
        "loss": effects.loss,
    }
    for trial in result.calibration.trials:
        if result.calibration.is_chosen(trial) and trial.gap.recovered is not None:
            metrics["gap_recovered"] = trial.gap.recovered
    return {name: round(value, 4) for name, value in metrics.items()}


def _manifest(
    pair: ModelPair,
    recipe: DiscoveryRecipe,
    name: str,
    version: str,
    sae: SaeSpec,
    behaviors: tuple[Behavior, ...],
    training: Training,
    setting: SteeringSetting,
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
            base=_model_card(recipe.base, pair.base),
            thinking=_model_card(recipe.thinking, pair.thinking),
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
        raise HybridError(
            f"{name}/{version}: {first_problem(error)}; correct the recipe, or --out NAME/VERSION"
        ) from None


def _model_card(id: str, model: LanguageModel) -> ModelCard:
    revision = getattr(model.config, "_commit_hash", None)  # of a model from the hub
    return model_card(id, model.config, model.tokenizer, revision)


def _tensors(result: DiscoveryResult) -> dict[str, Tensor]:
    sae, fitted = result.chosen.sae, result.fitted
    tensors = {
        "bias": fitted.bias,
        **{behavior.tensor: fitted.vectors[behavior.latent] for behavior in result.behaviors},
        "sae.encoder.weight": sae.encoder.weight,
        "sae.encoder.bias": sae.encoder.bias,
        "sae.decoder.weight": sae.decoder,
        "sae.decoder.bias": sae.encoder.decoder_bias,
        "sae.mean": sae.encoder.mean,
    }
    if fitted.network is not None:
        tensors |= {
            "coefficient.trunk.weight": fitted.network.trunk_weight,
            "coefficient.trunk.bias": fitted.network.trunk_bias,
            "coefficient.heads.weight": fitted.network.heads_weight,
            "coefficient.heads.bias": fitted.network.heads_bias,
        }
    return tensors
