from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.formats import direction
from lm_eval_hybrid.common.errors import HybridError

SOURCE = Path("file")


@pytest.mark.parametrize(
    ("point", "layer"),
    [
        ("layers.3", 3),
        ("model.layers.3", 3),
        ("h.0", 0),
        ("transformer.h.11", 11),
        ("gpt_neox.layers.5", 5),
        ("decoder.layers.2", 2),
        ("model.decoder.layers.2", 2),
        ("model.language_model.layers.7", 7),
        ("blocks.4", 4),
        ("blocks.4.hook_resid_post", 4),
        ("blocks.4.hook_resid_pre", 3),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.4.hook_mlp_out", None),
        ("blocks.4.attn.hook_z", None),
        ("layers.3.self_attn", None),
        ("layers", None),
        ("layers.-1", None),
        ("layers.1.2", None),
        ("layers.٣", None),
        ("../layers.3", None),
        ("", None),
    ],
)
def test_layers_of_modules_and_hooks(point: str, layer: int | None) -> None:
    assert direction.layer_of(point) == layer


def test_the_only_direction_needs_no_choice() -> None:
    assert direction.pick(SOURCE, {"layers.3": 3}, None) == "layers.3"
    assert direction.pick(SOURCE, {"layers.3": 3}, 3) == "layers.3"


def test_of_several_the_layer_chooses_and_the_others_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    layers = {"layers.3": 3, "layers.4": 4, "layers.4.mlp": None}
    assert direction.pick(SOURCE, layers, 4) == "layers.4"
    assert "left out: layers.3, layers.4.mlp" in caplog.text


@pytest.mark.parametrize(
    ("layers", "wanted", "said"),
    [
        ({"layers.3": 3, "layers.4": 4}, None, "holds layers.3, layers.4; .*choose"),
        ({"layers.3": 3}, 4, r"holds layers.3 \(none at layer 4\)"),
        ({"layers.3": 3, "model.layers.3": 3}, 3, r"\(2 at layer 3\)"),
        ({"layers.3.self_attn": None}, None, "no layer's output"),
        ({f"layers.{i}": i for i in range(100)}, None, "and 88 more"),
    ],
)
def test_an_ambiguous_choice_lists_the_candidates(layers: dict[str, int | None], wanted: int | None, said: str) -> None:
    with pytest.raises(HybridError, match=said):
        direction.pick(SOURCE, layers, wanted)
