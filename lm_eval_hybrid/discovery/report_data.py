"""The data of a discovery run's page, computed from its result and its bundle."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.common.errors import HybridError, clip
from lm_eval_hybrid.discovery.pipeline import DiscoveryResult
from lm_eval_hybrid.discovery.taxonomy import naming
from lm_eval_hybrid.discovery.taxonomy.autoencoders import unit_rows
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
