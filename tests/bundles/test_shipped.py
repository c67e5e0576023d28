"""The bundles that come with the package."""

import pytest

from lm_eval_hybrid.bundles import card, contents
from lm_eval_hybrid.bundles.store.resolve import ListedBundle, listing
from lm_eval_hybrid.common.paths import bundles_dir


@pytest.fixture(
    params=sorted(path.parent for path in bundles_dir().rglob("behavior.yaml")), ids=lambda path: path.parent.name
)
def shipped(request: pytest.FixtureRequest) -> ListedBundle:
    return ListedBundle(contents.read(request.param).manifest, request.param)


def test_it_is_sound_and_can_be_named(shipped: ListedBundle) -> None:
    assert contents.faults(shipped.path) == []
    assert shipped.path in [listed.path for listed in listing()]


def test_its_card_is_up_to_date(shipped: ListedBundle) -> None:
    manifest = shipped.manifest
    assert (shipped.path / "README.md").read_text() == card.render(manifest)
    assert all(behavior.examples and behavior.title for behavior in manifest.behaviors)


def test_it_has_results_with_controls(shipped: ListedBundle) -> None:
    assert {result.task for result in shipped.manifest.results} == {"gsm8k_embedded", "math500_embedded"}
    for result in shipped.manifest.results:
        assert {"base", "hybrid", "thinking", "takeover", "bias-only"} <= result.scores.keys()
        assert result.gap_recovered is not None and result.gap_interval is not None
        low, high = result.gap_interval
        scores = result.scores
        gap = (scores["hybrid"] - scores["base"]) / (scores["thinking"] - scores["base"])
        assert low <= result.gap_recovered <= high
        assert result.gap_recovered == pytest.approx(gap, abs=1e-3)
