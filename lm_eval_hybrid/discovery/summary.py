"""What a run found, as the page of its bundle shows it."""

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.discovery import findings
from lm_eval_hybrid.discovery.found import Found
from lm_eval_hybrid.discovery.taxonomy import naming
from lm_eval_hybrid.discovery.taxonomy.sae import unit_rows
from lm_eval_hybrid.report.findings import (
    BehaviorRow,
    CalibrationRow,
    ChosenTaxonomy,
    CurvePoint,
    Findings,
    JudgeGrades,
    MapPoint,
    SweepRow,
    shorten,
)

POINTS = 3000  # sentences on the map
EXAMPLES = 8
EXAMPLE = 1000  # characters


def summarise(found: Found, bundle: Bundle) -> Findings:
    """The findings of a run whose bundle this is."""
    manifest = bundle.manifest
    place = torch.full((found.codes.shape[1],), -1, dtype=torch.int64)
    for index, behavior in enumerate(manifest.behaviors):
        place[behavior.latent] = index
    category = place[found.codes.argmax(-1)]
    known = category >= 0
    count = len(manifest.behaviors)
    follows = findings.transitions(found.owner[known], category[known], count)
    return Findings(
        bundle=f"{manifest.name}@{manifest.version}",
        base=manifest.base.id,
        thinking=manifest.thinking.id,
        data=manifest.training.data,
        code_version=manifest.training.code_version,
        seed=manifest.training.seed or 0,
        behaviors=tuple(_behaviors(found, bundle, category)),
        points=tuple(_points(found, category)),
        transitions=tuple(map(tuple, follows.tolist())),
        sweep=tuple(_row(row) for row in found.sweep.rows()),
        chosen=ChosenTaxonomy(layer=found.chosen.layer, size=found.chosen.size),
        curves=dict(_curves(found)),
        cosines=tuple(map(tuple, _cosines(bundle).tolist())),
        grades=_grades(found),
        calibration=tuple(_calibration(found)),
        holdout=manifest.training.holdout,
    )


def _behaviors(found: Found, bundle: Bundle, category: Tensor) -> Iterator[BehaviorRow]:
    effect = found.effects.by_category()
    for index, behavior in enumerate(bundle.manifest.behaviors):
        yield BehaviorRow(
            key=behavior.key,
            title=behavior.title,
            description=behavior.description,
            share=float((category == index).float().mean()),
            examples=tuple(
                shorten(text, EXAMPLE)
                for text in naming.exemplars(found.sentences, found.codes, behavior.latent, EXAMPLES)
            ),
            norm=float(bundle.tensors[behavior.tensor].norm()),
            effect=effect[behavior.latent],
            gates=int(found.effects.gates[behavior.latent]),
        )


def _points(found: Found, category: Tensor) -> Iterator[MapPoint]:
    order = torch.randperm(len(category), generator=torch.Generator().manual_seed(0))
    some = order[category[order] >= 0][:POINTS].sort().values
    unit = unit_rows(found.activations[some], found.chosen.sae.encoder.mean)
    for (x, y), i in zip(findings.map_points(unit, 0).tolist(), some.tolist(), strict=True):
        yield MapPoint(x=x, y=y, behavior=int(category[i]), text=shorten(found.sentences[i]))


def _row(row: dict) -> SweepRow:
    names = {"word_information": "told"}
    return SweepRow(**{each.name: row[names.get(each.name, each.name)] for each in fields(SweepRow)})


def _curves(found: Found) -> Iterator[tuple[str, tuple[CurvePoint, ...]]]:
    for number, fitted in enumerate(found.fits):
        for name, curve in fitted.curves.items():
            steps = tuple(
                CurvePoint(epoch=point.epoch, loss=point.loss, held_out=point.held_out, norm=point.norm)
                for point in curve
            )
            yield (name if len(found.fits) == 1 else f"fit {number} {name}"), steps


def _cosines(bundle: Bundle) -> Tensor:
    rows = [bundle.bias, *(bundle.tensors[behavior.tensor] for behavior in bundle.manifest.behaviors)]
    unit = normalize(torch.stack(rows).double(), dim=-1)
    return unit @ unit.T


def _grades(found: Found) -> JudgeGrades | None:
    grades = found.grades
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


def _calibration(found: Found) -> Iterator[CalibrationRow]:
    calibration = found.calibration
    for row, gap in zip(calibration.tried, calibration.gaps, strict=True):
        yield CalibrationRow(
            select=row.setting.select,
            coefficients=row.setting.coefficients,
            windows=row.setting.windows,
            gap=gap.recovered,
            gap_low=gap.low,
            gap_high=gap.high,
            steered=row.steered,
            changed=row.changed,
            accuracy=row.accuracy,
            chosen=(row.fit, row.setting) == (calibration.fit, calibration.setting),
        )
