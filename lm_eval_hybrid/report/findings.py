"""The results of a discovery run as plain data: everything that its page shows. Also written as findings.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lm_eval_hybrid.common.files import write_file

SCHEMA = 1


@dataclass(frozen=True)
class BehaviorRow:
    """One behavior of the taxonomy.

    Attributes:
        share: its share of all sentences.
        examples: the sentences that activate it most.
        norm: L2 norm of its vector.
        effect: of its held-out gates, the share at which the base, steered with vector and bias, predicts the thinking
            model's token, minus the same share with the bias alone; None where it was not measured.
        gates: number of these gates.
    """

    key: str
    title: str
    description: str
    share: float
    examples: Sequence[str]
    norm: float
    effect: float | None = None
    gates: int = 0


@dataclass(frozen=True)
class MapPoint:
    """One sentence on the map: its place, the index of its behavior, and its text."""

    x: float
    y: float
    behavior: int
    text: str


@dataclass(frozen=True)
class SweepRow:
    """The metrics of one taxonomy of the sweep: a method with a number of categories at a layer. None: not measured."""

    layer: int
    method: str
    size: int
    score: float | None = None
    stability: float | None = None
    silhouette: float | None = None
    confidence: float | None = None
    explained: float | None = None
    word_information: float | None = None


@dataclass(frozen=True)
class ChosenTaxonomy:
    """The sparse autoencoder of the sweep that became the bundle's taxonomy."""

    layer: int
    size: int


@dataclass(frozen=True)
class CurvePoint:
    """The state of a fit after some epochs.

    Attributes:
        epoch: epochs completed.
        loss: mean loss on the training data, in nats; None before the first epoch.
        held_out: mean loss on the held-out data, in nats.
        norm: mean L2 norm of the vectors.
    """

    epoch: int
    loss: float | None = None
    held_out: float | None = None
    norm: float | None = None


@dataclass(frozen=True)
class JudgeGrades:
    """A judge's grades of the taxonomy, each from 0 to 1; None where it gave no usable answer.

    Attributes:
        judge: its name.
        consistency: how well fresh readers put held-out sentences into their categories.
        completeness: how well the categories cover the sentences.
        independence: how distinct the descriptions are.
        score: the overall grade.
        unanswered: number of questions without a usable answer.
    """

    judge: str
    consistency: float | None = None
    completeness: float | None = None
    independence: float | None = None
    score: float | None = None
    unanswered: int = 0


@dataclass(frozen=True)
class CalibrationRow:
    """One steering policy, evaluated on held-out problems.

    Attributes:
        windows: numbers of last positions to steer; 0 means all.
        gap: signed gap recovered, (hybrid - base) / (thinking - base); None where it is undefined.
        gap_low, gap_high: its 95% interval.
        steered, changed: shares of the generated tokens.
        accuracy: share of the problems solved.
        chosen: became the bundle's policy.
    """

    select: str
    coefficients: Sequence[float]
    windows: Sequence[int]
    steered: float
    changed: float
    accuracy: float
    gap: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Findings:
    """Everything on the page of one discovery run.

    Attributes:
        bundle: name@version.
        base, thinking: ids of the models.
        data: the training data, in words.
        points: a sample of the sentences; empty without a map.
        transitions: [n][n], how often the column's behavior follows the row's; empty where it was not counted.
        curves: by fit, such as `bias` or `seed 0 vectors`; fits with the same last word share a chart.
        cosines: [n + 1][n + 1], of the bias and then the behaviors' vectors; empty where they were not computed.
        holdout: metrics on held-out data, by their names in the manifest.
    """

    bundle: str
    base: str
    thinking: str
    data: str
    code_version: str
    seed: int
    behaviors: Sequence[BehaviorRow]
    points: Sequence[MapPoint] = ()
    transitions: Sequence[Sequence[int]] = ()
    sweep: Sequence[SweepRow] = ()
    chosen: ChosenTaxonomy | None = None
    curves: Mapping[str, Sequence[CurvePoint]] = field(default_factory=dict)
    cosines: Sequence[Sequence[float]] = ()
    grades: JudgeGrades | None = None
    calibration: Sequence[CalibrationRow] = ()
    holdout: Mapping[str, float] = field(default_factory=dict)


def write(findings: Findings, path: Path) -> None:
    """Write the findings as JSON, whole or not at all."""
    fields = {"schema_version": SCHEMA, **asdict(findings)}
    write_file(path, json.dumps(fields, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
