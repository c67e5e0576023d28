"""Bundles in the terminal: the table of `behaviors list` and the pages of `behaviors show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.bundles.card import gap
from lm_eval_hybrid.bundles.manifest import Manifest, ModelCard
from lm_eval_hybrid.bundles.store.resolve import ListedBundle
from lm_eval_hybrid.common.text import printable

if TYPE_CHECKING:
    import numpy as np


_MANY = 64  # rows and columns, more than a screen


def print_listing(console: Console, bundles: Sequence[ListedBundle]) -> None:
    """One row a bundle: name, version, the two models, number of behaviors, best gap recovered, size."""
    if not bundles:
        console.print("No bundles found.")
        return
    table = plain_table("name", "version", "base", "thinking", "behaviors", "best gap recovered", "size")
    for listed in bundles:
        manifest = listed.manifest
        cells = (manifest.name, manifest.version, manifest.base.id, manifest.thinking.id, str(len(manifest.behaviors)))
        table.add_row(*map(plain, (*cells, _best(manifest), _size(listed))))
    console.print(table)


def print_bundle(console: Console, bundle: ListedBundle, tensors: Mapping[str, np.ndarray]) -> None:
    """What a bundle says about itself: models, steering, behaviors, their likeness, results, and where it is."""
    manifest = bundle.manifest
    parts: list[RenderableType] = [plain(manifest.description.strip()), Text(), _facts(bundle), Text()]
    parts += [_behaviors(manifest), Text(), *_cosines(manifest, tensors)]
    if manifest.results:
        parts += [Text(), _results(manifest)]
    title = plain(f"{manifest.name} {manifest.version}", style="bold")
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(1, 2)))


def _best(manifest: Manifest) -> str:
    known = [result for result in manifest.results if result.gap_recovered is not None]
    if not known:
        return "-"
    best = max(known, key=lambda result: result.gap_recovered or 0.0)
    return f"{gap(best)} {best.task}"


def _size(bundle: ListedBundle) -> str:
    names = [path for path in bundle.path.iterdir() if path.is_file()] if bundle.path.is_dir() else []
    size = sum(path.stat().st_size for path in names)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _facts(bundle: ListedBundle) -> Table:
    manifest = bundle.manifest
    steering, sae, training = manifest.steering, manifest.sae, manifest.training
    coefficients = ", ".join(f"{a:g}" for a in steering.coefficients)
    windows = ", ".join(str(w) if w else "all" for w in steering.windows)
    facts = {
        "base": _model(manifest.base),
        "thinking": _model(manifest.thinking),
        "steering": f"after layer {steering.layer}; coefficients {coefficients}; windows {windows}; "
        f"gate {steering.gate}; select {steering.select}",
        "category": f"after layer {sae.layer}; {sae.latents} latents, k = {sae.k}; normalization {sae.normalization}",
        "prompt": f"{manifest.prompt.thinking}; prefix {manifest.prompt.prefix!r}",
        "held out": "; ".join(f"{name} {value:g}" for name, value in training.holdout.items()) or "no figures",
        "licence": f"{manifest.license}; by {', '.join(manifest.authors)}",
        "supersedes": manifest.supersedes or "nothing",
        "folder": str(bundle.path),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(name, plain(fact))
    return grid


def _model(card: ModelCard) -> str:
    at = f"@{card.revision}" if card.revision else ""
    layers = "layers unknown" if card.layers is None else f"{card.layers} layers"
    return f"{card.id}{at} ({card.architecture or 'architecture unknown'}, {layers}, width {card.hidden_size})"


def _behaviors(manifest: Manifest) -> Table:
    table = plain_table("latent", "key", "norm", "behavior", "example")
    for behavior in sorted(manifest.behaviors, key=lambda behavior: behavior.latent):
        example = behavior.examples[0] if behavior.examples else ""
        cells = (str(behavior.latent), behavior.key, f"{behavior.norm:.3g}", behavior.title, example)
        table.add_row(*map(plain, cells))
    return table


def _cosines(manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> list[RenderableType]:
    """How alike the steering vectors are, bias included: cosines in hundredths, latents as columns."""
    import numpy as np

    named = sorted(manifest.behaviors, key=lambda behavior: behavior.latent)
    if len(named) > _MANY:
        return [Text(f"cosine similarities are shown of up to {_MANY} behaviors")]
    rows = np.stack([tensors["bias"], *(tensors[behavior.tensor] for behavior in named)]).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / np.where(np.outer(norms, norms) > 0, np.outer(norms, norms), 1)
    labels = ["bias", *(str(behavior.latent) for behavior in named)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for label in ("", *labels):
        table.add_column(label, justify="right")
    for label, row in zip(labels, cosines, strict=True):
        table.add_row(Text(label, style="bold"), *(Text(f"{100 * c:.0f}", style=_shade(c)) for c in row))
    return [Text("cosine similarity of the vectors, in hundredths, by latent", style="bold"), table]


def _shade(cosine: float) -> str:
    return "bold" if abs(cosine) >= 0.75 else "" if abs(cosine) >= 0.25 else "dim"


def _results(manifest: Manifest) -> Table:
    arms = list(dict.fromkeys(arm for result in manifest.results for arm in result.scores))[:_MANY]
    table = plain_table("task", *arms, "gap recovered", "steered", "changed", "documents")
    for result in manifest.results:
        scores = [f"{result.scores[arm]:.1%}" if arm in result.scores else "" for arm in arms]
        fractions = [f"{result.steered_fraction:.1%}", f"{result.changed_fraction:.1%}"]
        table.add_row(*map(plain, (result.task, *scores, gap(result), *fractions, str(result.documents))))
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines, whose words wrap rather than vanish."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(plain(column), overflow="fold")
    return table


def plain(value: object, style: str = "") -> Text:
    """Other people's words as they are: their square brackets are no markup, their control characters do nothing."""
    return Text(printable(str(value)), style=style)
