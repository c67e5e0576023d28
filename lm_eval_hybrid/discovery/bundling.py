"""A discovery run's result as a bundle, and as the data of the page about it."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

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
from lm_eval_hybrid.common.errors import HybridError, clip
from lm_eval_hybrid.discovery.calibration import SteeringSetting
from lm_eval_hybrid.discovery.pipeline import DiscoveryResult
from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe
from lm_eval_hybrid.discovery.taxonomy import naming
from lm_eval_hybrid.discovery.taxonomy.autoencoders import unit_rows
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import digest
from lm_eval_hybrid.models.protocol import LanguageModel
from lm_eval_hybrid.report.findings import (
    BehaviorRow,
    CalibrationRow,
    ChosenTaxonomy,
    CurvePoint,
    Findings,
    JudgeGrades,
    MapPoint,
    SweepRow,
)

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


POINTS = 3000  # sentences on the map
EXAMPLES = 8
EXAMPLE = 1000  # characters of an example
SENTENCE = 200  # characters of a sentence on the map
COMPONENTS = 30  # principal components that t-SNE gets
PERPLEXITY = 30.0  # approximate number of neighbours that t-SNE keeps close
FEWEST = 10  # sentences; of fewer the map is their principal components, since neighbours mean little


def make_findings(result: DiscoveryResult, bundle: Bundle) -> Findings:
    """Everything on the page of the run that made a bundle."""
    manifest = bundle.manifest
    behavior_of = torch.full((result.codes.shape[1],), -1, dtype=torch.int64)
    for index, behavior in enumerate(manifest.behaviors):
        behavior_of[behavior.latent] = index
    category = behavior_of[result.codes.argmax(-1)]
    known = category >= 0
    transitions = count_transitions(result.trace_index[known], category[known], len(manifest.behaviors))
    return Findings(
        bundle=f"{manifest.name}@{manifest.version}",
        base=manifest.base.id,
        thinking=manifest.thinking.id,
        data=manifest.training.data,
        code_version=manifest.training.code_version,
        seed=manifest.training.seed or 0,
        behaviors=tuple(_behaviors(result, bundle, category)),
        points=tuple(_points(result, category)),
        transitions=tuple(map(tuple, transitions.tolist())),
        sweep=tuple(_sweep(result)),
        chosen=ChosenTaxonomy(layer=result.chosen.layer, size=result.chosen.size),
        curves=dict(_curves(result)),
        cosines=tuple(map(tuple, _cosines(bundle).tolist())),
        grades=_grades(result),
        calibration=tuple(_calibration(result)),
        holdout=manifest.training.holdout,
    )


def _behaviors(result: DiscoveryResult, bundle: Bundle, category: Tensor) -> Iterator[BehaviorRow]:
    effect = result.effects.by_category()
    for index, behavior in enumerate(bundle.manifest.behaviors):
        examples = naming.exemplars(result.sentences, result.codes, behavior.latent, EXAMPLES)
        yield BehaviorRow(
            key=behavior.key,
            title=behavior.title,
            description=behavior.description,
            share=float((category == index).float().mean()),
            examples=tuple(clip(text.strip(), EXAMPLE) for text in examples),
            norm=float(bundle.tensors[behavior.tensor].norm()),
            effect=effect[behavior.latent],
            gates=int(result.effects.gates[behavior.latent]),
        )


def _points(result: DiscoveryResult, category: Tensor) -> Iterator[MapPoint]:
    order = torch.randperm(len(category), generator=torch.Generator().manual_seed(0))
    sample = order[category[order] >= 0][:POINTS].sort().values
    unit = unit_rows(result.activations[sample], result.chosen.sae.encoder.mean)
    for (x, y), i in zip(map_points(unit, 0).tolist(), sample.tolist(), strict=True):
        yield MapPoint(x=x, y=y, behavior=int(category[i]), text=clip(result.sentences[i].strip(), SENTENCE))


def _sweep(result: DiscoveryResult) -> Iterator[SweepRow]:
    for entry in (entry for layer in result.sweep.layers for entry in layer.entries):
        metrics = entry.metrics
        yield SweepRow(
            layer=entry.layer,
            method=entry.method,
            size=entry.size,
            score=metrics.score,
            stability=metrics.stability,
            silhouette=metrics.silhouette,
            confidence=metrics.confidence,
            explained=metrics.explained,
            word_information=metrics.word_information,
        )


def _curves(result: DiscoveryResult) -> Iterator[tuple[str, tuple[CurvePoint, ...]]]:
    for number, fitted in enumerate(result.fits):
        for name, curve in fitted.curves.items():
            points = tuple(CurvePoint(epoch.epoch, epoch.loss, epoch.held_out, epoch.norm) for epoch in curve)
            yield (name if len(result.fits) == 1 else f"fit {number} {name}"), points


def _cosines(bundle: Bundle) -> Tensor:
    rows = [bundle.bias, *(bundle.tensors[behavior.tensor] for behavior in bundle.manifest.behaviors)]
    unit = normalize(torch.stack(rows).double(), dim=-1)
    return unit @ unit.T


def _grades(result: DiscoveryResult) -> JudgeGrades | None:
    grades = result.grades
    if grades is None:
        return None
    return JudgeGrades(
        judge=grades.judge,
        consistency=grades.consistency.value,
        completeness=grades.completeness.value,
        independence=grades.independence,
        score=grades.score,
        unanswered=grades.unanswered,
    )


def _calibration(result: DiscoveryResult) -> Iterator[CalibrationRow]:
    for trial in result.calibration.trials:
        yield CalibrationRow(
            select=trial.setting.select,
            coefficients=trial.setting.coefficients,
            windows=trial.setting.windows,
            gap=trial.gap.recovered,
            gap_low=trial.gap.low,
            gap_high=trial.gap.high,
            steered=trial.result.steered,
            changed=trial.result.changed,
            accuracy=trial.result.accuracy,
            chosen=result.calibration.is_chosen(trial),
        )


def count_transitions(trace_index: Tensor, category: Tensor, size: int) -> Tensor:
    """Counts [size, size] int64: how often a sentence of the column's category follows one of the row's in a trace.

    Args:
        trace_index: [n] int64, the trace of each sentence; those of a trace are adjacent and in order.
        category: [n] int64, from 0 to `size` - 1.
    """
    follows = trace_index[1:] == trace_index[:-1]
    pairs = (category[:-1] * size + category[1:])[follows]
    return pairs.bincount(minlength=size * size).reshape(size, size)


def map_points(x: Tensor, seed: int) -> Tensor:
    """A two-dimensional map [n, 2] float32 of points [n, d]: t-SNE, initialized with the first principal components.

    Of fewer than 10 points it is these components, and of equal points zeros. On one machine, a seed gives the same map
    each time.

    Raises:
        HybridError: x holds NaN or infinity.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not x.isfinite().all():
        raise HybridError("activations hold NaN or infinity; delete the activations stage and run again")
    if bool((x == x[:1]).all()):
        return torch.zeros(len(x), 2)
    points = x.detach().cpu().double().numpy()
    plane = np.zeros((len(points), 2))
    # In one thread: the order of sums in several threads, and so their bits, may differ the next time.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        components = PCA(min(COMPONENTS, *points.shape), random_state=seed).fit_transform(points)
        plane[:, : components.shape[1]] = components[:, :2]
        if len(points) >= FEWEST:
            start = plane / plane[:, 0].std() * 1e-4  # small, so that points can still pass one another
            perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
            plane = TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(components)
    return torch.from_numpy(np.asarray(plane)).float()
