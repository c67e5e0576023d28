"""Bundles in the terminal: the table of `behaviors list` and the panel of `behaviors show`."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.behaviors.card import gap
from lm_eval_hybrid.behaviors.manifest import Manifest, ModelCard
from lm_eval_hybrid.behaviors.resolve import Listed
from lm_eval_hybrid.report.text import printable


def print_listing(console: Console, bundles: Sequence[Listed]) -> None:
    """One row a bundle: name, version, the two models, number of behaviors, gap recovered by task."""
    if not bundles:
        console.print("No bundles found.")
        return
    table = _table("name", "version", "base", "thinking", "behaviors", "gap recovered")
    for manifest in (listed.manifest for listed in bundles):
        gaps = "\n".join(f"{result.task} {gap(result)}" for result in manifest.results)
        models = (manifest.base.id, manifest.thinking.id)
        cells = (manifest.name, manifest.version, *models, str(len(manifest.behaviors)), gaps)
        table.add_row(*map(_text, cells))
    console.print(table)


def print_bundle(console: Console, bundle: Listed) -> None:
    """What a bundle says about itself: models, steering, behaviors, results, and where it is."""
    manifest = bundle.manifest
    parts = [_text(manifest.description.strip()), Text(), _facts(bundle), Text(), _behaviors(manifest)]
    if manifest.results:
        parts += [Text(), _results(manifest)]
    title = _text(f"{manifest.name} {manifest.version}", style="bold")
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(1, 2)))


def _facts(bundle: Listed) -> Table:
    manifest = bundle.manifest
    steering, sae = manifest.steering, manifest.sae
    coefficients = ", ".join(f"{a:g}" for a in steering.coefficients)
    windows = ", ".join(str(w) if w else "all" for w in steering.windows)
    facts = {
        "base": _model(manifest.base),
        "thinking": _model(manifest.thinking),
        "steering": f"after layer {steering.layer}; coefficients {coefficients}; windows {windows}; "
        f"gate {steering.gate}; select {steering.select}",
        "category": f"after layer {sae.layer}; {sae.latents} latents, k = {sae.k}",
        "prompt": f"{manifest.prompt.thinking}; prefix {manifest.prompt.prefix!r}",
        "licence": f"{manifest.license}; by {', '.join(manifest.authors)}",
        "folder": str(bundle.path),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(name, _text(fact))
    return grid


def _model(card: ModelCard) -> str:
    at = f"@{card.revision}" if card.revision else ""
    return f"{card.id}{at} ({card.architecture}, {card.layers} layers, width {card.hidden_size})"


def _behaviors(manifest: Manifest) -> Table:
    table = _table("latent", "key", "norm", "behavior", "example")
    for behavior in sorted(manifest.behaviors, key=lambda behavior: behavior.latent):
        example = behavior.examples[0] if behavior.examples else ""
        cells = (str(behavior.latent), behavior.key, f"{behavior.norm:.3g}", behavior.title, example)
        table.add_row(*map(_text, cells))
    return table


def _results(manifest: Manifest) -> Table:
    arms = list(dict.fromkeys(arm for result in manifest.results for arm in result.scores))
    table = _table("task", *arms, "gap recovered", "steered", "changed", "documents")
    for result in manifest.results:
        scores = [f"{result.scores[arm]:.1%}" if arm in result.scores else "" for arm in arms]
        fractions = [f"{result.steered_fraction:.1%}", f"{result.changed_fraction:.1%}"]
        table.add_row(*map(_text, (result.task, *scores, gap(result), *fractions, str(result.documents))))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(_text(column), overflow="fold")
    return table


def _text(value: str, style: str = "") -> Text:
    # As text, not as markup: a bundle's words may hold square brackets.
    return Text(printable(value), style=style)
