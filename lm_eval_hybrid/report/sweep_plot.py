"""A picture of a sweep: the score and its parts over the sizes."""

from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.discovery.sweep import Sweep
from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from matplotlib.artist import Artist

PARTS = ("score", "stability", "silhouette", "confidence", "told", "explained")
STYLES = {
    "sae": {"color": "C0", "marker": "o", "linewidth": 1.8, "zorder": 3},
    "k-means": {"color": "C1", "marker": "s", "linewidth": 1.0},
    "gmm": {"color": "C2", "marker": "^", "linewidth": 1.0},
}


def plot(found: Sweep, path: Path) -> tuple[Path, Path]:
    """Draws a row of panels a layer, and a star at the autoencoder that is chosen; returns the PNG and the SVG written.

    The same sweep gives the same bytes, with the same matplotlib.

    Args:
        path: of either, or without a suffix.

    Raises:
        HybridError: where matplotlib is missing, or the files cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise HybridError("plots need matplotlib; found none; pip install matplotlib") from None
    rows, best = found.rows(), found.best()
    parts = [part for part in PARTS if rows[0][part] is not None]
    figure = Figure(figsize=(2.6 * len(parts), 2.3 * len(found.layers) + 0.7), layout="constrained")
    panels = figure.subplots(len(found.layers), len(parts), squeeze=False, sharex=True, sharey="col")
    for swept, line in zip(found.layers, panels, strict=True):
        for part, panel in zip(parts, line, strict=True):
            for method, style in STYLES.items():
                those = [row for row in rows if (row["layer"], row["method"]) == (swept.layer, method)]
                if those := sorted(those, key=lambda row: row["size"]):
                    xs, ys = [row["size"] for row in those], [row[part] for row in those]
                    panel.plot(xs, ys, markersize=3.5, label=method, **style)
            if swept.layer == best.layer:
                panel.plot(best.size, best.row()[part], "*", color="C3", markersize=12, label="chosen", zorder=4)
            panel.grid(alpha=0.3)
        line[0].set_ylabel(f"layer {swept.layer}")
    for part, top, bottom in zip(parts, panels[0], panels[-1], strict=True):
        top.set_title(part)
        bottom.set_xlabel("categories")
    shown: dict[str, Artist] = {}
    for panel in panels[:, 0]:
        artists, labels = panel.get_legend_handles_labels()
        shown |= dict(zip(labels, artists, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), fontsize="small")
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "sweep"}):
            figure.savefig(png, dpi=120)
            figure.savefig(svg, metadata={"Date": None})
    except OSError as error:
        raise HybridError(f"{path}: must be writable; found {error.strerror}; name another") from None
    return png, svg
