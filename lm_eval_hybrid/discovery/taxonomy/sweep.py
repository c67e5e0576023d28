"""Top-K autoencoders of many sizes at some layers, two baselines beside them, and the choice by their score.

`figures` says what the score is. On the embedded pair, whose generator writes 8 behaviors, `python -m benchmarks.sweep`
shows the size and the layer that it chooses.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations.rows import Rows
from lm_eval_hybrid.discovery.taxonomy import baselines
from lm_eval_hybrid.discovery.taxonomy.autoencoders import Trained, train_many
from lm_eval_hybrid.discovery.taxonomy.figures import Figures, Points
from lm_eval_hybrid.discovery.taxonomy.sae import Sae, SaeRecipe, unit_rows
from lm_eval_hybrid.discovery.taxonomy.words import said

SCHEMA = 1
ROWS_FILE = "rows.json"
TENSORS_FILE = "autoencoders.safetensors"

Method = Literal["sae", "k-means", "gmm"]
_CHECKED = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)
class Entry:
    """One size at one layer, by one method.

    Attributes:
        seeds: starts that were tried.
        reconstructed: share of the held-out variance of x that x' explains; of autoencoders, as all that follow.
        k: latents that may be active at once.
        revived: how often a dead latent started anew.
        steps: of the training.
        sae: of the start that the figures are of.
    """

    layer: int
    method: Method
    size: int
    seeds: int
    figures: Figures
    reconstructed: float | None = None
    k: int | None = None
    revived: int | None = None
    steps: int | None = None
    sae: Sae | None = dataclasses.field(default=None, repr=False, compare=False)

    def row(self) -> dict[str, Any]:
        """All but the tensors, flat, and the score."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        figures = dataclasses.asdict(own.pop("figures"))
        del own["sae"]
        first = {name: own.pop(name) for name in ("layer", "method", "size")}
        return first | {"score": self.figures.score} | figures | own


@dataclass(frozen=True)
class LayerSweep:
    """All that was compared at one layer.

    Attributes:
        entries: by method, the autoencoders first, and by size in the recipe's order.
    """

    layer: int
    entries: tuple[Entry, ...]

    def save(self, folder: Path) -> None:
        """Writes rows.json and autoencoders.safetensors into a folder; the sweep is there once rows.json is.

        Raises:
            HybridError: where they cannot be written.
        """
        tensors = save({name: tensor for entry in self.entries for name, tensor in _tensors(entry)})
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
                f"{folder}: a sweep needs a folder with room to be written to; found {error.strerror}; make some, or "
                "name another"
            ) from None

    @classmethod
    def load(cls, folder: Path) -> "LayerSweep":
        """The sweep that was saved there.

        Raises:
            HybridError: where there is none, or a file is not as it was written.
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
            found = f"{type(error).__name__}: {error}".splitlines()[0]
            raise HybridError(
                f"{folder}: must hold a layer's sweep of schema {SCHEMA}, as it was written; found {found}; delete it "
                "and sweep again"
            ) from None


@dataclass(frozen=True)
class Sweep:
    """All that was compared.

    Attributes:
        layers: one or more.
    """

    layers: tuple[LayerSweep, ...]

    def best(self) -> Entry:
        """The autoencoder with the highest score; of equals the smaller, and of those the first."""
        those = [entry for layer in self.layers for entry in layer.entries if entry.method == "sae"]
        return max(those, key=lambda entry: (entry.figures.score, -entry.size))

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row an entry."""
        return [entry.row() for layer in self.layers for entry in layer.entries]


def sweep_layer(
    layer: int,
    activations: Rows,
    held_out: Rows,
    recipe: SaeRecipe,
    seed: int,
    sentences: tuple[Sequence[str], Sequence[str]],
) -> LayerSweep:
    """Trains autoencoders of all sizes at one layer, and the baselines, and measures all alike.

    Args:
        layer: which of the recipe's it is.
        activations: [n, d] of any float type, of the sentences to learn from.
        held_out: [h, d], of others; their figures are measured.
        sentences: what the n and the h sentences say.

    Raises:
        HybridError: where the sides do not fit together, or there is nothing to learn from (`train_many`).
    """
    _check(layer, (activations, held_out), sentences)
    samples = [_sample(len(side), recipe.scored, seed) for side in (activations, held_out)]
    words = said(*([side[row] for row in rows.tolist()] for side, rows in zip(sentences, samples, strict=True)))
    trained = train_many(activations, recipe, seed)
    mean = trained[0].sae.encoder.mean
    other = held_out[samples[1]].float()
    points = Points(unit_rows(activations[samples[0]], mean), unit_rows(other, mean), words)
    if broken := int((~(points.held_out.norm(dim=-1) > 0)).sum()):
        raise HybridError(
            f"layer {layer}: held-out activations must be finite and off the mean; found {broken} of {len(other)} rows "
            "that are not; read them again"
        )
    entries = list(_autoencoders(layer, trained, points, other, recipe.seeds))
    for method in recipe.baselines:
        starts = baselines.categories(method, points, recipe, seed)
        for size in tqdm(recipe.sizes, desc=f"layer {layer}: {method}"):
            entries.append(Entry(layer, method, size, recipe.seeds, points.figures(next(starts), size)))
    return LayerSweep(layer, tuple(entries))


def _check(layer: int, sides: tuple[Rows, Rows], sentences: tuple[Sequence[str], Sequence[str]]) -> None:
    for name, rows, texts in zip(("learned", "held-out"), sides, sentences, strict=True):
        if len(rows) != len(texts):
            raise HybridError(
                f"layer {layer}: {name} activations must have a row a sentence; found {len(rows)} rows of {len(texts)} "
                "sentences; read them again"
            )
    if len(sides[1]) < 2:
        raise HybridError(
            f"held-out activations must be of 2 sentences or more; found {len(sides[1])}; hold out more traces"
        )


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Ascending numbers of up to `most` of `count` rows."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _autoencoders(
    layer: int, trained: Sequence[Trained], points: Points, held_out: Tensor, seeds: int
) -> Iterator[Entry]:
    for first in range(0, len(trained), seeds):
        some = trained[first : first + seeds]
        # They read what is centred and scaled already.
        readers = [dataclasses.replace(one.sae.encoder, unit=False) for one in some]
        starts = [(reader.category(points.learned), reader.category(points.held_out)) for reader in readers]
        figures = points.figures(starts, some[0].size)
        chosen = some[figures.start]
        yield Entry(
            layer=layer,
            method="sae",
            size=chosen.size,
            seeds=seeds,
            figures=figures,
            reconstructed=chosen.sae.explained(held_out),
            k=chosen.sae.k,
            revived=chosen.revived,
            steps=chosen.steps,
            sae=chosen.sae,
        )


def _tensors(entry: Entry) -> Iterator[tuple[str, Tensor]]:
    """An autoencoder's, by their names in the file."""
    if entry.sae is not None:
        encoder = entry.sae.encoder
        yield "mean", encoder.mean  # the same for all sizes
        yield f"{entry.size}.decoder_bias", encoder.decoder_bias
        yield f"{entry.size}.weight", encoder.weight
        yield f"{entry.size}.bias", encoder.bias
        yield f"{entry.size}.decoder", entry.sae.decoder


def _entry(row: dict[str, Any], tensors: dict[str, Tensor]) -> Entry:
    """The entry of `Entry.row`."""
    names = {field.name for field in dataclasses.fields(Figures)}
    own = {name: value for name, value in row.items() if name not in names and name != "score"}
    figures = Figures(**{name: row[name] for name in names})
    if row["method"] != "sae":
        return Entry(**own, figures=figures)
    parts = (tensors[f"{row['size']}.{name}"] for name in ("decoder_bias", "weight", "bias"))
    encoder = SparseEncoder(tensors["mean"], *parts)
    return Entry(**own, figures=figures, sae=Sae(encoder, tensors[f"{row['size']}.decoder"], row["k"]))
