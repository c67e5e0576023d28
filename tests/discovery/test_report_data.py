import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.common.errors import HybridError, clip
from lm_eval_hybrid.discovery import bundling
from lm_eval_hybrid.discovery.bundling import count_transitions, map_points
from lm_eval_hybrid.discovery.pipeline import DiscoveryResult
from lm_eval_hybrid.report import findings
from lm_eval_hybrid.report.findings import Findings
from tests.discovery.conftest import Studied
from tests.discovery.test_pipeline import found_by, recipe


@pytest.fixture(scope="module")
def made(studied: Studied, tmp_path_factory: pytest.TempPathFactory) -> tuple[DiscoveryResult, Bundle]:
    folder = tmp_path_factory.mktemp("made")
    settings = recipe(folder)
    found = found_by(settings, studied.pair, folder / "work")
    return found, bundling.make_bundle(found, studied.pair, settings, "mine", "0.1.0")


@pytest.fixture(scope="module")
def shown(made: tuple[DiscoveryResult, Bundle]) -> Findings:
    return bundling.make_findings(*made)


def behavior_of(made: tuple[DiscoveryResult, Bundle]) -> list[int | None]:
    """The index of each sentence's behavior, by a plain loop."""
    found, bundle = made
    place = {behavior.latent: index for index, behavior in enumerate(bundle.manifest.behaviors)}
    return [place.get(max(range(len(row)), key=row.__getitem__)) for row in found.codes.tolist()]


def test_findings_name_the_bundle_models_and_data(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    training = made[1].manifest.training
    assert (shown.bundle, shown.base, shown.thinking) == ("mine@0.1.0", "the/base", "the/thinking")
    assert (shown.data, shown.seed, shown.holdout) == (training.data, training.seed, training.holdout)
    assert shown.grades is None


def test_shares_and_examples_are_those_of_the_sentences(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    category = behavior_of(made)
    assert [b.share for b in shown.behaviors] == pytest.approx(
        [category.count(index) / len(category) for index in range(len(shown.behaviors))]
    )
    known = {text: behavior for text, behavior in zip(made[0].sentences, category, strict=True)}
    for index, behavior in enumerate(shown.behaviors):
        assert behavior.examples and all(
            known[text] == index for text in made[0].sentences if clip(text.strip(), 1000) in behavior.examples
        )


def test_a_behavior_follows_another_within_a_trace_only(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    count = len(shown.behaviors)
    expected = [[0] * count for _ in range(count)]
    pairs = [(o, c) for o, c in zip(made[0].trace_index.tolist(), behavior_of(made), strict=True) if c is not None]
    for (trace, first), (other, second) in pairwise(pairs):
        if trace == other:
            expected[first][second] += 1
    assert [list(row) for row in shown.transitions] == expected


def test_points_are_sentences_with_their_behaviors(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    known = [(i, c) for i, c in enumerate(behavior_of(made)) if c is not None]
    assert [(point.text, point.behavior) for point in shown.points] == [
        (clip(made[0].sentences[i].strip(), 200), c) for i, c in known
    ]


def test_the_map_has_a_maximum_of_points(made: tuple[DiscoveryResult, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "POINTS", 5)
    assert len(bundling.make_findings(*made).points) == 5


def test_cosines_are_of_the_bias_and_the_vectors(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    found, bundle = made
    some = {name: torch.randn(tensor.shape) for name, tensor in bundle.tensors.items() if name[0] in "bv"}
    noisy = replace(bundle, tensors={**bundle.tensors, **some})
    cosines = torch.tensor(bundling.make_findings(found, noisy).cosines)
    rows = [some["bias"], *(some[b.tensor] for b in bundle.manifest.behaviors)]
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert cosines[i, j].item() == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-5)
    assert len(shown.cosines) == len(shown.behaviors) + 1, "even if a vector is zero"


def test_the_sweep_has_all_its_rows(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    assert [(row.layer, row.size, row.method) for row in shown.sweep] == [(2, 3, "sae"), (1, 3, "sae")]
    assert (shown.chosen.layer, shown.chosen.size) == (made[0].chosen.layer, 3)
    best = max(shown.sweep, key=lambda row: row.score)
    assert best.layer == shown.chosen.layer


def test_every_fit_has_its_curves(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    assert set(shown.curves) == {"fit 0 bias", "fit 0 vectors", "fit 1 bias", "fit 1 vectors"}
    for number, fitted in enumerate(made[0].fits):
        for name, curve in fitted.curves.items():
            steps = shown.curves[f"fit {number} {name}"]
            assert [(s.epoch, s.loss, s.held_out) for s in steps] == [(p.epoch, p.loss, p.held_out) for p in curve]
    alone = replace(made[0], fits=made[0].fits[:1], calibration=replace(made[0].calibration, fit=0))
    assert set(bundling.make_findings(alone, made[1]).curves) == {"bias", "vectors"}


def test_one_trial_of_calibration_is_marked_as_chosen(made: tuple[DiscoveryResult, Bundle], shown: Findings) -> None:
    trials = made[0].calibration.trials
    assert [(row.select, row.coefficients, row.accuracy, row.steered) for row in shown.calibration] == [
        (t.setting.select, t.setting.coefficients, t.result.accuracy, t.result.steered) for t in trials
    ]
    assert [row.chosen for row in shown.calibration].count(True) == 1
    chosen = next(row for row in shown.calibration if row.chosen)
    assert chosen.select == made[1].manifest.steering.select


def test_the_findings_are_written_as_json(shown: Findings, tmp_path: Path) -> None:
    findings.write(shown, tmp_path / "findings.json")
    written = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert written["schema_version"] == 1 and written["bundle"] == "mine@0.1.0"
    assert [point["text"] for point in written["points"]] == [point.text for point in shown.points]


def test_transitions_are_counted_within_a_trace_only() -> None:
    trace = torch.tensor([0, 0, 0, 1, 1, 4])
    category = torch.tensor([0, 2, 2, 0, 2, 1])
    assert count_transitions(trace, category, 3).tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 1]]
    for few in (0, 1):
        assert count_transitions(trace[:few], category[:few], 2).tolist() == [[0, 0], [0, 0]]


def test_a_map_keeps_clusters_together_and_is_deterministic() -> None:
    random = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 16, generator=random)
    category = torch.arange(60) % 3
    x = centres[category] + torch.randn(60, 16, generator=random)
    found = map_points(x, seed=1)
    assert found.shape == (60, 2) and found.dtype == torch.float32
    nearest = (torch.cdist(found, found) + torch.eye(60) * 1e9).argmin(1)
    assert torch.equal(category[nearest], category)
    assert torch.equal(found, map_points(x, seed=1))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (9, 1), (12, 1), (12, 2), (5, 40), (3, 0)])
def test_a_map_of_few_points_or_dimensions(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    found = map_points(x, seed=0)
    assert found.shape == (shape[0], 2) and found.isfinite().all()


def test_equal_points_have_equal_places() -> None:
    assert torch.equal(map_points(torch.full((50, 8), 0.3), seed=0), torch.zeros(50, 2))
    same_but_one = torch.zeros(50, 8)
    same_but_one[0] = 1
    assert map_points(same_but_one, seed=0).isfinite().all()


def test_a_map_of_nan_is_refused() -> None:
    with pytest.raises(HybridError, match="NaN or infinity"):
        map_points(torch.tensor([[0.0], [float("nan")]]), seed=0)
