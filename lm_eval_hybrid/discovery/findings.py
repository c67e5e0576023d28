"""What discovery found, as plain data: all that the page of a bundle shows, and nothing else.

Findings are checked completely when they are built, unknown keys are rejected, and they are frozen afterwards; so a
file from elsewhere that could be read can be shown. Whoever only reads or shows findings needs no torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.bundles.manifest import KEY_PATTERN, Fraction, Index, Select, first_problem
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular, write_file

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 32 << 20  # of a file
MAX_BEHAVIORS = 100  # more colours and rows of a heat map than these cannot be told apart
MAX_POINTS = 4000
MAX_TEXT = 200  # characters of a sentence on the map
AXES = 30  # principal components that t-SNE sees
PERPLEXITY = 30.0  # neighbours of a sentence that t-SNE keeps near it, about
FEWEST = 10  # sentences, below which neighbours mean little, and the map is of principal components

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=20_000)]
Figure = Annotated[float, Field(ge=-1e9, le=1e9)]
Cosines = Annotated[tuple[Annotated[float, Field(ge=-1.001, le=1.001)], ...], Field(max_length=MAX_BEHAVIORS + 1)]
Counts = Annotated[tuple[Index, ...], Field(max_length=MAX_BEHAVIORS)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FoundBehavior(_Part):
    """A behavior of the taxonomy.

    Attributes:
        share: of all sentences that are of it.
        examples: sentences at which it is strongest.
        norm: L2 norm of its vector.
        effect: share of its held-out gates at which the steered base says the thinking model's token, with its vector
            and the bias, minus the same with the bias alone; None where it was not measured.
        gates: how many held-out gates those are.
    """

    key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=100)]
    title: Name
    description: Text
    share: Fraction
    examples: Annotated[tuple[Text, ...], Field(max_length=50)]
    norm: Annotated[float, Field(ge=0, le=1e9)]
    effect: Annotated[float, Field(ge=-1, le=1)] | None = None
    gates: Index = 0


class Point(_Part):
    """A sentence on the map: where it lies, the index of its behavior, and what it says (see `shorten`)."""

    x: Figure
    y: Figure
    behavior: Index
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class SweepRow(_Part):
    """A size at a layer by a method, and its figures (see the sweep); None where one was not measured."""

    layer: Index
    method: Name
    size: Index
    score: Figure | None = None
    stability: Figure | None = None
    silhouette: Figure | None = None
    confidence: Figure | None = None
    explained: Figure | None = None
    told: Figure | None = None


class Chosen(_Part):
    """The taxonomy taken from the sweep."""

    layer: Index
    size: Index


class Step(_Part):
    """A moment of a training.

    Attributes:
        step: passes over the data that were done.
        loss: mean of the pass in nats, on what is learned; None before the first.
        held_out: the same on what is held out.
        norm: mean L2 norm of the vectors.
    """

    step: Index
    loss: Figure | None = None
    held_out: Figure | None = None
    norm: Figure | None = None


class Grades(_Part):
    """What a judge thinks of the taxonomy, each figure from 0 to 1; None where it was not asked or did not answer.

    Attributes:
        judge: its name.
        consistency: do fresh readers put held-out sentences in the same category.
        completeness: do the categories cover what is said.
        independence: are their descriptions apart.
        score: all in one.
        unanswered: questions without an answer that could be used.
    """

    judge: Name
    consistency: Fraction | None = None
    completeness: Fraction | None = None
    independence: Fraction | None = None
    score: Fraction | None = None
    unanswered: Index = 0


class CalibrationRow(_Part):
    """A way to steer, tried on held-out problems.

    Attributes:
        windows: of the last positions; 0 means all.
        gap: signed gap recovered, (hybrid - base) / (thinking - base); None where it is not defined.
        gap_low, gap_high: its 95% interval.
        steered, changed: shares of the tokens.
        accuracy: share of the problems answered right.
    """

    select: Select
    coefficients: Annotated[tuple[Figure, ...], Field(max_length=100)]
    windows: Annotated[tuple[Index, ...], Field(max_length=100)]
    gap: Figure | None = None
    gap_low: Figure | None = None
    gap_high: Figure | None = None
    steered: Fraction
    changed: Fraction
    accuracy: Fraction
    chosen: bool = False


class Findings(_Part):
    """All that the page shows.

    Attributes:
        bundle: name@version.
        base, thinking: ids of the models.
        data: what was learned from, in words.
        points: some of the sentences; none where there is no map.
        transitions: [n][n], how often the behavior of a column follows that of a row; () where it was not counted.
        curves: of each training, such as `bias` or `seed 0 vectors`. Those whose last word is the same share a figure.
        cosines: [n + 1][n + 1], of the bias and the behaviors' vectors, in this order; () where they were not computed.
        holdout: figures on data held out, as the manifest names them.
    """

    schema_version: Literal[1] = 1
    bundle: Name
    base: Name
    thinking: Name
    data: Text
    code_version: Name
    seed: int
    behaviors: Annotated[tuple[FoundBehavior, ...], Field(min_length=1, max_length=MAX_BEHAVIORS)]
    points: Annotated[tuple[Point, ...], Field(max_length=MAX_POINTS)] = ()
    transitions: Annotated[tuple[Counts, ...], Field(max_length=MAX_BEHAVIORS)] = ()
    sweep: Annotated[tuple[SweepRow, ...], Field(max_length=5000)] = ()
    chosen: Chosen | None = None
    curves: Annotated[
        dict[Name, Annotated[tuple[Step, ...], Field(min_length=1, max_length=10_000)]], Field(max_length=64)
    ] = Field(default_factory=dict)
    cosines: Annotated[tuple[Cosines, ...], Field(max_length=MAX_BEHAVIORS + 1)] = ()
    grades: Grades | None = None
    calibration: Annotated[tuple[CalibrationRow, ...], Field(max_length=1000)] = ()
    holdout: Annotated[dict[Name, Figure], Field(max_length=100)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Findings:
        count = len(self.behaviors)
        if len({behavior.key for behavior in self.behaviors}) < count:
            raise ValueError(f"behaviors must each have their own key; found {[b.key for b in self.behaviors]}")
        for name, matrix, size in (("transitions", self.transitions, count), ("cosines", self.cosines, count + 1)):
            if matrix and (len(matrix) != size or any(len(row) != size for row in matrix)):
                raise ValueError(
                    f"{name} must be {size} rows of {size} for {count} behaviors; found {len(matrix)} rows of "
                    f"{sorted({len(row) for row in matrix})}"
                )
        stray = [point.behavior for point in self.points if point.behavior >= count]
        if stray:
            raise ValueError(f"points' behaviors must be below {count}; found {max(stray)}")
        return self


def dump(findings: Findings) -> bytes:
    """The JSON bytes of `findings`: equal findings give equal bytes, and `parse` undoes it."""
    return findings.model_dump_json(indent=1).encode() + b"\n"


def parse(data: bytes, source: Path) -> Findings:
    """The findings in JSON bytes. HybridError, which begins with `source`, where they are unsound."""
    try:
        return Findings.model_validate_json(data, strict=True)
    except ValidationError as error:
        problem = first_problem(error).removeprefix("manifest: ")
        raise HybridError(f"{source}: {problem}; mend it, or discover again") from error


def read(path: Path) -> Findings:
    """The findings in a file. HybridError where it cannot be read, is too large or unsound."""
    return parse(read_regular(path, MAX_BYTES), path)


def write(findings: Findings, path: Path) -> None:
    """Writes the findings as JSON, whole or not at all."""
    write_file(path, dump(findings))


def shorten(text: str, most: int = MAX_TEXT) -> str:
    """A sentence in at most `most` characters, by default what a point holds; an ellipsis ends what was cut."""
    text = text.strip()
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def transitions(trace_index: Tensor, category: Tensor, size: int) -> Tensor:
    """Counts [size, size] int64: how often a sentence of the column's category follows one of the row's in a trace.

    Args:
        trace_index: [n] int64, the trace of each sentence; those of a trace are together and in order.
        category: [n] int64, from 0 to `size` - 1.
    """
    follows = trace_index[1:] == trace_index[:-1]
    pairs = (category[:-1] * size + category[1:])[follows]
    return pairs.bincount(minlength=size * size).reshape(size, size)


def map_points(x: Tensor, seed: int) -> Tensor:
    """A map [n, 2] float32 of points [n, d]: t-SNE of their principal components, whose plane it starts from.

    Of fewer than 10 points it is that plane itself, and zeros where all are the same. A seed gives the same map again
    on the same machine.

    Raises:
        HybridError: where x has what is no number.
    """
    import numpy as np
    import torch
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not x.isfinite().all():
        raise HybridError("a map needs activations that are numbers; found others; read the activations again")
    if bool((x == x[:1]).all()):
        return torch.zeros(len(x), 2)
    points = x.detach().cpu().double().numpy()
    plane = np.zeros((len(points), 2))
    # In one thread: the sums of several end in an order that may differ the next time.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        axes = PCA(min(AXES, *points.shape), random_state=seed).fit_transform(points)
        plane[:, : axes.shape[1]] = axes[:, :2]
        if len(points) >= FEWEST:
            start = plane / plane[:, 0].std() * 1e-4  # small, or the points could not pass one another
            perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
            plane = TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(axes)
    return torch.from_numpy(np.asarray(plane)).float()
