"""The sweep: autoencoders of many sizes at some layers, two baselines beside them, and the choice by their score.

`metrics` defines the score. On the embedded pair, whose generator writes 8 behaviors, `python -m benchmarks.sweep`
shows the size and the layer that are chosen.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations.store import ActivationRows
from lm_eval_hybrid.discovery.taxonomy.autoencoders import (
    Baseline,
    SaeRecipe,
    TopKAutoencoder,
    TrainedAutoencoder,
    train_many,
    unit_rows,
)
from lm_eval_hybrid.discovery.taxonomy.metrics import Assignments, EvaluationSet, TaxonomyMetrics, word_tables

SCHEMA = 1
ROWS_FILE = "rows.json"
TENSORS_FILE = "autoencoders.safetensors"
VARIANCE_FLOOR = 1e-3  # of a mixture component, as a share of the mean variance

Method = Literal["sae", "k-means", "gmm"]
_CHECKED = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_FILE_NAMES = {"word_information": "told"}  # names in files that differ from the fields' names
_SAE_COLUMNS = ("reconstructed", "k", "revived", "steps")


@pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)
class SweepEntry:
    """One size at one layer, by one method.

    Attributes:
        seeds: number of starts.
    """

    layer: int
    method: Method
    size: int
    seeds: int
    metrics: TaxonomyMetrics

    def row(self) -> dict[str, Any]:
        """The entry as a row of the table: flat, with the score and without tensors."""
        metrics = dataclasses.asdict(self.metrics)
        return {
            "layer": self.layer,
            "method": self.method,
            "size": self.size,
            "score": self.metrics.score,
            **{_FILE_NAMES.get(name, name): value for name, value in metrics.items()},
            "seeds": self.seeds,
            **{name: getattr(self, name, None) for name in _SAE_COLUMNS},
        }


@pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)
class AutoencoderEntry(SweepEntry):
    """An autoencoder in the sweep.

    Attributes:
        reconstructed: share of the held-out variance of x that x' explains.
        k: latents that may be active at once.
        revived: how often a dead latent was restarted.
        steps: of the training.
        sae: the autoencoder, from the start that the metrics are of.
    """

    reconstructed: float
    k: int
    revived: int
    steps: int
    sae: TopKAutoencoder = dataclasses.field(repr=False, compare=False)


@dataclass(frozen=True)
class LayerSweep:
    """All entries of one layer: by method, the autoencoders first, and by size in the recipe's order."""

    layer: int
    entries: tuple[SweepEntry, ...]

    def save(self, folder: Path) -> None:
        """Write rows.json and autoencoders.safetensors into a folder; the sweep is complete once rows.json exists.

        Raises:
            HybridError: they cannot be written.
        """
        saes = [entry for entry in self.entries if isinstance(entry, AutoencoderEntry)]
        tensors = save({name: tensor for entry in saes for name, tensor in _tensors(entry)})
        content = {
            "schema": SCHEMA,
            "layer": self.layer,
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            "rows": [entry.row() for entry in self.entries],
        }
        try:
            write_file(folder / TENSORS_FILE, tensors)
            write_file(folder / ROWS_FILE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise HybridError(
                f"{folder}: the sweep cannot be written ({error.strerror}); make room, or name another folder"
            ) from None

    @classmethod
    def load(cls, folder: Path) -> "LayerSweep":
        """Read a sweep that `save` wrote.

        Raises:
            HybridError: there is none, or a file has changed since.
        """
        try:
            content = json.loads((folder / ROWS_FILE).read_bytes())
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']!r}")
            data = (folder / TENSORS_FILE).read_bytes()
            if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
                raise ValueError(f"another {TENSORS_FILE}")
            tensors = load(data)
            return cls(content["layer"], tuple(_entry(row, tensors) for row in content["rows"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise HybridError(
                f"{folder}: contains no complete sweep of schema {SCHEMA} ({reason}); delete it and sweep again"
            ) from None


@dataclass(frozen=True)
class Sweep:
    """The sweeps of one layer or more."""

    layers: tuple[LayerSweep, ...]

    def best(self) -> AutoencoderEntry:
        """The autoencoder with the highest score; among equals the smallest, then the first."""
        entries = [entry for layer in self.layers for entry in layer.entries]
        saes = [entry for entry in entries if isinstance(entry, AutoencoderEntry)]
        return max(saes, key=lambda entry: (entry.metrics.score, -entry.size))

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row for each entry."""
        return [entry.row() for layer in self.layers for entry in layer.entries]


def sweep_layer(
    layer: int,
    activations: ActivationRows,
    held_out: ActivationRows,
    recipe: SaeRecipe,
    seed: int,
    sentences: tuple[Sequence[str], Sequence[str]],
) -> LayerSweep:
    """Train autoencoders of all sizes at one layer, and the baselines, and measure all alike.

    Args:
        layer: number of the layer, one of the recipe's.
        activations: [n, d] of any float type, of the sentences to learn from.
        held_out: [h, d], of the sentences to measure on.
        sentences: texts of the n and the h sentences.

    Raises:
        HybridError: the arguments do not match, or there is nothing to learn from (`train_many`).
    """
    _check(layer, (activations, held_out), sentences)
    samples = [_sample(len(side), recipe.scored, seed) for side in (activations, held_out)]
    texts = ([side[row] for row in rows.tolist()] for side, rows in zip(sentences, samples, strict=True))
    words = word_tables(*texts)
    trained = train_many(activations, recipe, seed)
    mean = trained[0].sae.encoder.mean
    unseen = held_out[samples[1]].float()
    data = EvaluationSet(unit_rows(activations[samples[0]], mean), unit_rows(unseen, mean), words)
    if broken := int((~(data.held_out.norm(dim=-1) > 0)).sum()):
        raise HybridError(
            f"layer {layer}: {broken} of {len(unseen)} rows of held-out activations are not finite, or equal the mean; "
            "collect them again"
        )
    entries: list[SweepEntry] = list(_autoencoder_entries(layer, trained, data, unseen, recipe.seeds))
    for method in recipe.baselines:
        assignments = baseline_assignments(method, data, recipe, seed)
        for size in tqdm(recipe.sizes, desc=f"layer {layer}: {method}"):
            entries.append(SweepEntry(layer, method, size, recipe.seeds, data.measure(next(assignments), size)))
    return LayerSweep(layer, tuple(entries))


def _check(
    layer: int, sides: tuple[ActivationRows, ActivationRows], sentences: tuple[Sequence[str], Sequence[str]]
) -> None:
    for name, rows, texts in zip(("learned", "held-out"), sides, sentences, strict=True):
        if len(rows) != len(texts):
            raise HybridError(
                f"layer {layer}: there are {len(rows)} rows of {name} activations for {len(texts)} sentences, not one "
                "each; collect them again"
            )
    if len(sides[1]) < 2:
        raise HybridError(f"{len(sides[1])} sentences are held out; 2 or more are needed; hold out more traces")


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Ascending indices of up to `most` of `count` rows."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _autoencoder_entries(
    layer: int, trained: Sequence[TrainedAutoencoder], data: EvaluationSet, held_out: Tensor, seeds: int
) -> Iterator[AutoencoderEntry]:
    for first in range(0, len(trained), seeds):
        starts = trained[first : first + seeds]
        # The rows of `data` are centred and scaled already.
        encoders = [dataclasses.replace(one.sae.encoder, unit=False) for one in starts]
        assignments = [(encoder.category(data.learned), encoder.category(data.held_out)) for encoder in encoders]
        metrics = data.measure(assignments, starts[0].sae.size)
        chosen = starts[metrics.start]
        yield AutoencoderEntry(
            layer=layer,
            method="sae",
            size=chosen.sae.size,
            seeds=seeds,
            metrics=metrics,
            reconstructed=chosen.sae.explained(held_out),
            k=chosen.sae.k,
            revived=chosen.revived,
            steps=chosen.steps,
            sae=chosen.sae,
        )


def baseline_assignments(method: Baseline, data: EvaluationSet, recipe: SaeRecipe, seed: int) -> Iterator[Assignments]:
    """The categories of k-means or of Gaussian mixtures, from all starts, for each of the recipe's sizes.

    The mixture's components have diagonal covariances along the `recipe.dimensions` principal axes of the points.
    """
    learned, held_out = data.learned.numpy(), data.held_out.numpy()
    if method == "gmm":
        from sklearn.decomposition import PCA

        axes = PCA(min(recipe.dimensions, *learned.shape), random_state=seed % 2**32).fit(learned)
        learned, held_out = axes.transform(learned), axes.transform(held_out)
    for size in recipe.sizes:
        yield [_cluster(method, learned, held_out, size, seed + start) for start in range(recipe.seeds)]


def _cluster(
    method: Baseline, learned: np.ndarray, held_out: np.ndarray, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    if method == "gmm":
        # Without a floor, the variance of a component that covers few points would fall to 0.
        floor = VARIANCE_FLOOR * float(learned.var(0).mean())
        model = GaussianMixture(size, covariance_type="diag", reg_covar=floor, random_state=seed % 2**32)
    else:
        model = KMeans(size, n_init=1, random_state=seed % 2**32)
    # Threads add to sums in the order in which they finish, so with several the bytes would vary.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(learned)
        predicted = model.predict(learned), model.predict(held_out)
    return torch.from_numpy(predicted[0]).long(), torch.from_numpy(predicted[1]).long()


def _tensors(entry: AutoencoderEntry) -> Iterator[tuple[str, Tensor]]:
    """An autoencoder's tensors, by their names in the file."""
    encoder = entry.sae.encoder
    yield "mean", encoder.mean  # the same for all sizes
    yield f"{entry.size}.decoder_bias", encoder.decoder_bias
    yield f"{entry.size}.weight", encoder.weight
    yield f"{entry.size}.bias", encoder.bias
    yield f"{entry.size}.decoder", entry.sae.decoder


def _entry(row: dict[str, Any], tensors: dict[str, Tensor]) -> SweepEntry:
    """The entry of a row that `SweepEntry.row` made."""
    names = {field.name: _FILE_NAMES.get(field.name, field.name) for field in dataclasses.fields(TaxonomyMetrics)}
    metrics = TaxonomyMetrics(**{name: row[column] for name, column in names.items()})
    own = {name: value for name, value in row.items() if name not in {"score", *names.values()}}
    if row["method"] != "sae":
        return SweepEntry(**{name: own[name] for name in own if name not in _SAE_COLUMNS}, metrics=metrics)
    size = row["size"]
    decoder_bias, weight, bias = (tensors[f"{size}.{name}"] for name in ("decoder_bias", "weight", "bias"))
    encoder = SparseEncoder(tensors["mean"], decoder_bias, weight, bias)
    sae = TopKAutoencoder(encoder, tensors[f"{size}.decoder"], row["k"])
    return AutoencoderEntry(**own, metrics=metrics, sae=sae)
