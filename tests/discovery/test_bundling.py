from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery import bundling
from tests.discovery.conftest import Studied
from tests.discovery.test_pipeline import recipe

WIDE = {"settings": [{"coefficients": [1.0], "windows": [1, 1]}]}
BOTH = {"settings": [{}, {"select": "fixed", "coefficients": [1.0, 2.0]}]}


@pytest.mark.parametrize(
    ("named", "change", "said"),
    [
        (("My Bundle", "1.0.0"), {}, "name: .*found 'My Bundle'"),
        (("..", "1.0.0"), {}, "name: "),
        (("mine", "v1"), {}, "version: .*found 'v1'"),
        (("mine", "1.0"), {}, "version: "),
        (("mine", "1.0.0"), {"vectors": {"layer": 4}}, "steering.layer is 4; it must be below 4"),
        (("mine", "1.0.0"), {"sae": {"layers": [1, 9]}}, "sae.layer is 9; it must be below 4"),
        (("mine", "1.0.0"), {"calibration": WIDE}, "windows repeat a value"),
        (("mine", "1.0.0"), {"calibration": BOTH}, "select 'fixed' needs exactly one"),
        (("mine", "1.0.0"), {"calibration": {"settings": [{"select": "mlp", "windows": [1, 2]}]}}, "needs exactly one"),
    ],
)
def test_mistakes_are_refused_before_the_work(
    studied: Studied, tmp_path: Path, named: tuple[str, str], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(HybridError, match=said) as error:
        bundling.check_manifest(studied.pair, recipe(tmp_path, **change), *named)
    assert "\n" not in str(error.value)


def test_a_sound_recipe_passes(studied: Studied, tmp_path: Path) -> None:
    bundling.check_manifest(studied.pair, recipe(tmp_path), "mine", "1.0.0")
