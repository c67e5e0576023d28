import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.taxonomy.autoencoders import SaeRecipe, TopKAutoencoder
from lm_eval_hybrid.discovery.taxonomy.metrics import TaxonomyMetrics
from lm_eval_hybrid.discovery.taxonomy.sweep import (
    ROWS_FILE,
    TENSORS_FILE,
    AutoencoderEntry,
    LayerSweep,
    Sweep,
    SweepEntry,
    sweep_layer,
)
from tests.discovery.clusters import clusters, sentences

RECIPE = SaeRecipe(layers=(3,), sizes=(3, 5, 8), k=2, seeds=2, steps=100, dimensions=8)


def swept(recipe: SaeRecipe = RECIPE, layer: int = 3, noise: float = 0.6, seed: int = 0) -> LayerSweep:
    points, labels = clusters(400, noise=noise)
    texts = sentences(labels)
    return sweep_layer(layer, points[:300], points[300:], recipe, seed, (texts[:300], texts[300:]))


@pytest.fixture(scope="module")
def found() -> LayerSweep:
    return swept()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_method_has_every_size(found: LayerSweep) -> None:
    expected = [(method, size) for method in ("sae", "k-means", "gmm") for size in RECIPE.sizes]
    assert [(entry.method, entry.size) for entry in found.entries] == expected
    for entry in found.entries:
        assert (entry.layer, entry.seeds) == (3, 2)
        assert isinstance(entry, AutoencoderEntry) == (entry.method == "sae")
        own = (entry.row()[name] for name in ("k", "steps", "revived", "reconstructed"))
        assert all((value is None) == (entry.method != "sae") for value in own)


def test_the_true_number_of_clusters_is_chosen(found: LayerSweep) -> None:
    best = Sweep((found,)).best()
    assert (best.layer, best.size, best.k) == (3, 5, 2)
    assert best.sae.encoder.weight.shape == (5, 24)
    _, labels = clusters(400, noise=0.6)
    category = best.sae.encoder.category(clusters(400, noise=0.6)[0])
    assert len({(int(a), int(b)) for a, b in zip(category, labels, strict=True)}) == 5


def test_layers_are_compared_by_word_information() -> None:
    """Equally clear clusters that predict no words are not chosen."""
    points, labels = clusters(400, noise=0.6)
    texts = sentences(labels)
    strange = [texts[i] for i in torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()]
    recipe = replace(RECIPE, sizes=(5,), baselines=())
    layers = tuple(
        sweep_layer(layer, points[:300], points[300:], recipe, 0, (said[:300], said[300:]))
        for layer, said in ((0, strange), (1, texts), (2, strange))
    )
    assert Sweep(layers).best().layer == 1


def test_the_smaller_of_equals_is_best() -> None:
    metrics = TaxonomyMetrics(0.5, 0.5, 0.5, 0.5, 0.5, empty=0, smallest=0.1, start=0)
    better = replace(metrics, stability=0.6)
    encoder = SparseEncoder(torch.zeros(2), torch.zeros(2), torch.zeros(3, 2), torch.zeros(3))
    sae = TopKAutoencoder(encoder, torch.zeros(2, 3), 1)

    def entry(number: int, size: int, metrics: TaxonomyMetrics) -> AutoencoderEntry:
        return AutoencoderEntry(number, "sae", size, 2, metrics, 0.5, 1, 0, 10, sae)

    def layer(number: int, *sizes: tuple[int, TaxonomyMetrics]) -> LayerSweep:
        return LayerSweep(number, tuple(entry(number, size, metrics) for size, metrics in sizes))

    worse, equal = layer(1, (9, metrics), (6, metrics)), layer(2, (7, metrics))
    assert (Sweep((worse, equal)).best().size, Sweep((equal, worse)).best().size) == (6, 6)
    assert Sweep((layer(0, (6, metrics)), worse)).best().layer == 0
    assert Sweep((worse, layer(2, (20, better)))).best().size == 20
    baseline = LayerSweep(3, (SweepEntry(3, "k-means", 4, 2, better), entry(3, 5, metrics)))
    assert Sweep((baseline,)).best().method == "sae"


def test_a_sweep_of_one_size_and_one_start() -> None:
    (entry,) = swept(replace(RECIPE, sizes=(5,), seeds=1, baselines=())).entries
    assert entry.metrics.stability is None
    assert 0.1 < entry.metrics.score < 1
    assert Sweep((LayerSweep(3, (entry,)),)).best() is entry


def test_a_row_has_all_fields_of_its_entry(found: LayerSweep) -> None:
    row = found.entries[1].row()
    assert list(row)[:4] == ["layer", "method", "size", "score"]
    assert row["score"] == found.entries[1].metrics.score
    assert row["told"] == found.entries[1].metrics.word_information
    assert Sweep((found, found)).rows() == [entry.row() for entry in found.entries] * 2


def test_a_saved_sweep_is_loaded_unchanged(found: LayerSweep, tmp_path: Path) -> None:
    found.save(tmp_path / "a")
    assert sorted(files(tmp_path / "a")) == [TENSORS_FILE, ROWS_FILE]
    again = LayerSweep.load(tmp_path / "a")
    assert again == found
    points, _ = clusters(50)
    for one, other in zip(found.entries[:3], again.entries[:3], strict=True):
        assert torch.equal(one.sae.codes(points), other.sae.codes(points))
        assert torch.equal(one.sae.decoder, other.sae.decoder)
    assert Sweep((again,)).best().size == Sweep((found,)).best().size


def test_the_same_input_gives_the_same_bytes(found: LayerSweep, tmp_path: Path) -> None:
    found.save(tmp_path / "a")
    swept().save(tmp_path / "b")
    LayerSweep.load(tmp_path / "a").save(tmp_path / "c")
    swept(seed=1).save(tmp_path / "d")
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    assert files(tmp_path / "a")[TENSORS_FILE] != files(tmp_path / "d")[TENSORS_FILE]


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / ROWS_FILE).read_bytes())
        change(content)
        (folder / ROWS_FILE).write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / ROWS_FILE).unlink(), "FileNotFoundError"),
        (lambda folder: (folder / TENSORS_FILE).unlink(), "FileNotFoundError"),
        (lambda folder: (folder / ROWS_FILE).write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / ROWS_FILE).write_text("[]"), "TypeError"),
        (lambda folder: (folder / TENSORS_FILE).write_bytes(b"torn"), f"another {TENSORS_FILE}"),
        (edited(lambda content: content.update(schema=2)), "schema 2"),
        (edited(lambda content: content["rows"][0].update(method="dbscan")), "ValidationError"),
        (edited(lambda content: content["rows"][0].update(size=4)), "KeyError: '4.decoder_bias'"),
        (edited(lambda content: content["rows"][0].update(said=4)), "ValidationError"),
        (edited(lambda content: content["rows"][0].pop("told")), "KeyError: 'told'"),
    ],
)
def test_an_incomplete_folder_is_refused(
    found: LayerSweep, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    found.save(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(
        HybridError, match=f"contains no complete sweep of schema 1 .*{said}.*; delete it and sweep again"
    ):
        LayerSweep.load(tmp_path / "a")


def test_a_sweep_that_cannot_be_written_is_reported(found: LayerSweep, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HybridError, match="the sweep cannot be written"):
        found.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, b, s, t: (a[:-1], b, s, t), "layer 3: there are 299 rows of learned activations for 300 sentences"),
        (lambda a, b, s, t: (a, b, s, t[:-1]), "there are 100 rows of held-out activations for 99 sentences"),
        (
            lambda a, b, s, t: (a, b[:1], s, t[:1]),
            "1 sentences are held out; 2 or more are needed; hold out more traces",
        ),
        (lambda a, b, s, t: (a * float("nan"), b, s, t), "300 of 300 rows of activations are not finite"),
        (lambda a, b, s, t: (a * 0 + 1, b, s, t), "are the same; give other traces"),
        (lambda a, b, s, t: (a[:6].repeat(50, 1), b, s, t), "have 6 distinct rows; 8 latents need at least as many"),
        (
            lambda a, b, s, t: (a, b.index_fill(0, torch.tensor([7]), float("inf")), s, t),
            "1 of 100 rows of held-out activations are not finite",
        ),
    ],
)
def test_unusable_activations_are_refused(change: Callable[..., tuple], said: str) -> None:
    points, labels = clusters(400, noise=0.6)
    texts = sentences(labels)
    learned, held_out, *sides = change(points[:300], points[300:], texts[:300], texts[300:])
    with pytest.raises(HybridError, match=said):
        sweep_layer(3, learned, held_out, replace(RECIPE, steps=1), 0, tuple(sides))


def test_metrics_use_no_more_sentences_than_the_recipe_says() -> None:
    points, labels = clusters(400, noise=0.6)
    read: list[int] = []

    class Watched:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, rows: slice | Tensor) -> Tensor:
            read.append(len(self.rows[rows]))
            return self.rows[rows]

    texts = sentences(labels)
    recipe = replace(RECIPE, scored=40, batch=50, steps=1, sizes=(5,))
    sweep_layer(3, points[:300], Watched(points[300:]), recipe, 0, (texts[:300], texts[300:]))
    assert read == [40]


@pytest.mark.slow
def test_the_number_of_behaviors_of_the_embedded_pair_is_found(tmp_path: Path) -> None:
    """The generator writes 8 behaviors, of which discovery sees no labels."""
    from benchmarks.sweep import TRUE, agreement, embedded

    read = embedded(tmp_path, count=80, layers=(0, 3))
    recipe = SaeRecipe(layers=(0, 3), sizes=(4, 6, 8, 10, 12, 16), seeds=2, steps=300, baselines=())
    layers = [sweep_layer(layer, *read.rows(layer), recipe, 0, read.sentences) for layer in recipe.layers]
    best = Sweep(tuple(layers)).best()
    assert abs(best.size - TRUE) <= 2
    assert agreement(best, read) >= 0.8
