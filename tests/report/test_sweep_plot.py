import sys
from pathlib import Path

import pytest

from lm_eval_hybrid.discovery.figures import Figures
from lm_eval_hybrid.discovery.sweep import Entry, LayerSweep, Sweep
from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.report.sweep_plot import plot

pytest.importorskip("matplotlib")


def made(layers: int = 2, stability: float | None = 0.8) -> Sweep:
    """Scores that are best at 10 categories of the last layer."""

    def entry(layer: int, method: str, size: int) -> Entry:
        part = 0.3 + 0.1 * layer - 0.01 * abs(size - 10) + 0.01 * (method == "sae")
        return Entry(layer, method, size, 2, Figures(stability, part, part, 0.01 * size, part, 0, 0.1, 0))

    methods, sizes = ("sae", "k-means", "gmm"), (15, 5, 10)
    return Sweep(
        tuple(
            LayerSweep(layer, tuple(entry(layer, method, size) for method in methods for size in sizes))
            for layer in range(layers)
        )
    )


def test_both_files_are_pictures_with_every_part_and_layer(tmp_path: Path) -> None:
    png, svg = plot(made(), tmp_path / "sweep.png")
    assert (png, svg) == (tmp_path / "sweep.png", tmp_path / "sweep.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    # Text is drawn as shapes; its words stand beside them.
    for word in ("score", "stability", "told", "explained", "layer 0", "layer 1", "categories", "k-means", "chosen"):
        assert f"<!-- {word} -->" in text
    assert text.count("<!-- stability -->") == 1


def test_a_part_that_is_unknown_has_no_panel(tmp_path: Path) -> None:
    _, svg = plot(made(1, stability=None), tmp_path / "sweep")
    assert "<!-- stability -->" not in svg.read_text()
    assert "<!-- told -->" in svg.read_text()


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (plot(made(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_no_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="must be writable; found No such file"):
        plot(made(), tmp_path / "nowhere" / "sweep.png")


def test_no_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HybridError, match="plots need matplotlib; found none; pip install matplotlib"):
        plot(made(), tmp_path / "sweep")
