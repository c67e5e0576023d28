import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.taxonomy import sae as module
from lm_eval_hybrid.discovery.taxonomy.sae import Sae, SaeRecipe, mean_of, unit_rows


def drawn(latents: int = 6, width: int = 10, k: int = 2) -> Sae:
    torch.manual_seed(0)
    mean, own, weight, bias = torch.randn(width), torch.randn(width), torch.randn(latents, width), torch.randn(latents)
    return Sae(SparseEncoder(mean, own / 10, weight, bias), F.normalize(torch.randn(width, latents), dim=0), k)


def test_the_explained_share_is_that_of_a_plain_loop() -> None:
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


def test_points_that_do_not_vary_have_nothing_to_explain() -> None:
    found = drawn()
    assert found.explained(torch.ones(3, 10)) == 0.0
    assert found.explained(found.encoder.mean.repeat(3, 1)) == 0.0


def test_the_mean_is_that_of_all_rows_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ", 7)
    rows = torch.randn(100, 5).half()
    assert torch.equal(mean_of(rows), rows.double().mean(0).float())


def test_a_row_that_is_the_mean_has_no_direction() -> None:
    mean = torch.tensor([1.0, 2.0])
    assert torch.equal(unit_rows(torch.tensor([[1.0, 2.0], [4.0, 6.0]]), mean), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_counted(value: float) -> None:
    rows = torch.randn(20, 5)
    rows[3, 1] = rows[4, 0] = rows[4, 4] = value
    with pytest.raises(HybridError, match="must be finite numbers; found 2 of 20 rows with others; read them again"):
        mean_of(rows)


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_rows_that_are_all_the_same_are_refused(value: float) -> None:
    with pytest.raises(HybridError, match="must differ; found 30 rows that are all the same; give other traces"):
        mean_of(torch.full((30, 5), value))


def test_no_rows_are_refused() -> None:
    with pytest.raises(HybridError, match="must have a row a sentence; found none; give more traces"):
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
def test_a_recipe_that_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SaeRecipe(**{"layers": (0,)} | fields)
