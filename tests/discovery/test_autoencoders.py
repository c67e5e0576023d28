from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.taxonomy import autoencoders as module
from lm_eval_hybrid.discovery.taxonomy.autoencoders import (
    SaeRecipe,
    TopKAutoencoder,
    TrainedAutoencoder,
    mean_of,
    train_many,
    unit_rows,
)
from tests.discovery.clusters import clusters

RECIPE = SaeRecipe(layers=(0,), sizes=(5,), k=1, seeds=2, steps=150, tolerance=0.0)


def recipe(**changes: object) -> SaeRecipe:
    own = {name: getattr(RECIPE, name) for name in ("layers", "sizes", "k", "seeds", "steps", "tolerance")}
    return SaeRecipe(**own | changes)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(trained: tuple[TrainedAutoencoder, ...]) -> Tensor:
    return torch.cat([one.sae.encoder.weight for one in trained])


def test_latents_find_the_directions_without_labels() -> None:
    points, labels = clusters()
    for found in train_many(points, RECIPE, seed=0):
        strongest = found.sae.codes(points).argmax(-1)
        pairs = {(int(a), int(b)) for a, b in zip(strongest, labels, strict=True)}
        assert len(pairs) == 5 and len({latent for latent, _ in pairs}) == 5
        assert found.sae.explained(points) > 0.95


def test_every_size_has_its_seeds_in_order() -> None:
    points, _ = clusters(100)
    found = train_many(points, recipe(sizes=(7, 4), steps=3), seed=0)
    assert [(one.sae.size, one.steps) for one in found] == [(7, 3), (7, 3), (4, 3), (4, 3)]
    assert [tuple(one.sae.encoder.weight.shape) for one in found] == [(7, 24), (7, 24), (4, 24), (4, 24)]
    assert torch.equal(found[0].sae.encoder.mean, points.double().mean(0).float())


def test_errors_equal_those_of_explicit_reconstructions() -> None:
    points, _ = clusters(60, noise=1.0)
    mean = mean_of(points)
    stack = module._start(points, mean, recipe(sizes=(4, 6), k=2, seeds=2), 0)
    with torch.no_grad():
        for tensor in stack.parameters:
            tensor += 0.1 * torch.randn_like(tensor)
    unit = unit_rows(points, mean)
    errors, active = stack.errors(unit)
    for number, one in enumerate(stack.separate(mean)):
        code = (unit - one.encoder.decoder_bias) @ one.encoder.weight.T + one.encoder.bias
        kept = torch.where(code >= code.sort(descending=True).values[:, 1:2], code.relu(), 0.0)
        guess = kept @ one.decoder.T + one.encoder.decoder_bias
        torch.testing.assert_close(errors[:, number], (unit - guess).square().sum(-1), rtol=1e-4, atol=1e-5)
        assert torch.equal(active[:, stack.owner == number], kept > 0)


def test_an_autoencoder_does_not_depend_on_the_others_in_the_stack() -> None:
    points, _ = clusters(200, noise=0.5)
    alone = train_many(points, recipe(seeds=1, batch=64), seed=3)
    among = train_many(points, recipe(seeds=1, batch=64, sizes=(8, 5)), seed=3)
    assert [one.sae.size for one in among] == [8, 5]
    torch.testing.assert_close(weights(among[1:]), weights(alone), rtol=1e-3, atol=1e-3)


def test_the_same_seed_gives_the_same_bytes() -> None:
    points, _ = clusters(100)
    first, again = (weights(train_many(points, recipe(steps=40), seed=1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, weights(train_many(points, recipe(steps=40), seed=2)))


@pytest.mark.usefixtures("threads")
def test_more_threads_change_only_the_rounding() -> None:
    points, _ = clusters(1000, width=64, noise=0.5)
    shares = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        shares.append([one.sae.explained(points) for one in train_many(points, recipe(steps=20), seed=0)])
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)


def test_more_active_latents_explain_more() -> None:
    points, _ = clusters(noise=1.0)
    one, three = (train_many(points, recipe(seeds=1, k=k), seed=0)[0].sae.explained(points) for k in (1, 3))
    assert three > one + 0.05


def test_decoder_columns_have_norm_one() -> None:
    points, _ = clusters(100)
    for one in train_many(points, recipe(steps=20), seed=0):
        assert torch.allclose(one.sae.decoder.norm(dim=0), torch.ones(5), atol=1e-5)


def test_a_dead_latent_is_restarted_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = clusters()
    start = module._start

    def two_dead(*args: object) -> module._Stack:
        """Two of five latents are never active, so no gradient reaches them."""
        stack = start(*args)
        with torch.no_grad():
            stack.bias[3:] = -10.0
        return stack

    monkeypatch.setattr(module, "_start", two_dead)
    (healed,) = train_many(points, recipe(seeds=1, steps=300), seed=0)
    assert healed.revived >= 2
    monkeypatch.setattr(module, "REVIVAL", 0.0)
    (left,) = train_many(points, recipe(seeds=1, steps=300), seed=0)
    assert left.revived == 0
    # How many of them come to win some point depends on rounding.
    used = [len(one.sae.codes(points).argmax(-1).unique()) for one in (left, healed)]
    assert used[0] < used[1] <= 5
    assert healed.sae.explained(points) > left.sae.explained(points) + 0.05


def test_a_start_without_direction_causes_no_nan() -> None:
    """The mean is one of the points, and has no direction as a start."""
    points = torch.cat([torch.eye(4), -torch.eye(4), torch.zeros(1, 4)])
    for one in train_many(points, recipe(sizes=(9,), steps=60), seed=0):
        assert one.sae.encoder.weight.isfinite().all() and one.sae.decoder.isfinite().all()


def test_training_ends_early_without_progress() -> None:
    points, _ = clusters()
    (early,) = train_many(points, recipe(seeds=1, steps=2000, tolerance=0.01), seed=0)
    assert early.steps < 1000
    assert early.sae.explained(points) > 0.95


def test_rows_are_read_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 50)
    monkeypatch.setattr(module, "START_ROWS", 40)
    points, _ = clusters(1000)
    read: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(points)

        def __getitem__(self, rows: slice | Tensor) -> Tensor:
            found = points[rows]
            assert isinstance(rows, slice) or bool((rows.diff() > 0).all())
            read.append(len(found))
            return found

    found = train_many(Watched(), recipe(steps=20, batch=30), seed=0)
    assert max(read) == 50 and sorted(set(read)) == [30, 40, 50]
    assert torch.equal(weights(found), weights(train_many(points, recipe(steps=20, batch=30), seed=0)))


def test_each_epoch_has_every_row_once() -> None:
    points = torch.arange(1.0, 13.0)[:, None] * torch.eye(12)  # a direction a row
    batches = module._minibatches(points, torch.zeros(12), 4, seed=0)
    for _ in range(3):
        seen = [int(row) for _ in range(3) for row in next(batches).argmax(-1)]
        assert sorted(seen) == list(range(12))


def test_half_precision_is_read_as_it_is() -> None:
    points = clusters(200)[0].half()
    found = train_many(points, recipe(steps=20), seed=0)
    assert torch.equal(weights(found), weights(train_many(points.float(), recipe(steps=20), seed=0)))


def test_too_few_distinct_rows_are_refused() -> None:
    points = clusters(4)[0].repeat(50, 1)
    with pytest.raises(HybridError, match="have 4 distinct rows; 5 latents need at least as many; give more traces"):
        train_many(points, RECIPE, seed=0)
    with pytest.raises(HybridError, match="1 of 200 rows of activations are not finite"):
        train_many(points.index_fill(0, torch.tensor([3]), float("nan")), RECIPE, seed=0)


def drawn(latents: int = 6, width: int = 10, k: int = 2) -> TopKAutoencoder:
    torch.manual_seed(0)
    mean, own, weight, bias = torch.randn(width), torch.randn(width), torch.randn(latents, width), torch.randn(latents)
    return TopKAutoencoder(
        SparseEncoder(mean, own / 10, weight, bias), F.normalize(torch.randn(width, latents), dim=0), k
    )


def test_explained_equals_a_plain_loop() -> None:
    found, points = drawn(), torch.randn(50, 10, generator=torch.Generator().manual_seed(1)).double()
    encoder = found.encoder
    error, units = 0.0, []
    for point in points:
        x = (point - encoder.mean) / (point - encoder.mean).norm()
        answers = [float(encoder.weight[j].double() @ (x - encoder.decoder_bias) + encoder.bias[j]) for j in range(6)]
        strongest = sorted(range(6), key=answers.__getitem__)[-2:]
        guess = encoder.decoder_bias + sum(max(answers[j], 0.0) * found.decoder[:, j] for j in strongest)
        error += float((x - guess).square().sum())
        units.append(x)
    variance = float((torch.stack(units) - torch.stack(units).mean(0)).square().sum())
    assert found.explained(points.float()) == pytest.approx(1 - error / variance, abs=1e-5)


def test_constant_points_have_no_variance_to_explain() -> None:
    found = drawn()
    assert found.explained(torch.ones(3, 10)) == 0.0
    assert found.explained(found.encoder.mean.repeat(3, 1)) == 0.0


def test_the_mean_read_in_parts_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 7)
    rows = torch.randn(100, 5).half()
    assert torch.equal(mean_of(rows), rows.double().mean(0).float())


def test_a_row_that_is_the_mean_has_no_direction() -> None:
    mean = torch.tensor([1.0, 2.0])
    assert torch.equal(unit_rows(torch.tensor([[1.0, 2.0], [4.0, 6.0]]), mean), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_counted(value: float) -> None:
    rows = torch.randn(20, 5)
    rows[3, 1] = rows[4, 0] = rows[4, 4] = value
    with pytest.raises(HybridError, match="2 of 20 rows of activations are not finite; collect them again"):
        mean_of(rows)


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_rows_that_are_all_the_same_are_refused(value: float) -> None:
    with pytest.raises(HybridError, match="all 30 rows of activations are the same; give other traces"):
        mean_of(torch.full((30, 5), value))


def test_no_rows_are_refused() -> None:
    with pytest.raises(HybridError, match=r"there are no activations; .*; give more traces"):
        mean_of(torch.zeros(0, 5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (1, 1)}, r"layers must differ; found \(1, 1\)"),
        ({"sizes": (5, 8, 5)}, r"sizes must differ; found \(5, 8, 5\)"),
        ({"baselines": ("gmm", "gmm")}, "baselines must differ"),
        ({"baselines": ("dbscan",)}, "baselines"),
        ({"sizes": (5, 2)}, r"k must be at most the smallest size \(2\); found 3"),
        ({"batch": 49}, r"batch must be at least the largest size \(50\); found 49"),
        ({"scored": 49}, r"scored must be at least the largest size \(50\); found 49"),
        ({"sizes": (5, 101)}, "sizes must be at most 100, .*found 101"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"rate": 0.0}, "rate"),
        ({"latents": 8}, "latents"),
    ],
)
def test_an_invalid_recipe_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SaeRecipe(**{"layers": (0,)} | fields)
