"""Bundles in the terminal: `behaviors list`, `behaviors show` and `behaviors diff`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.card import gap
from lm_eval_hybrid.bundles.manifest import Manifest, ModelCard, Result
from lm_eval_hybrid.bundles.store.resolve import ListedBundle
from lm_eval_hybrid.common.errors import clip
from lm_eval_hybrid.report.cells import ABSENT
from lm_eval_hybrid.report.terminal import make_table, plain

if TYPE_CHECKING:
    import numpy as np

    from lm_eval_hybrid.bundles.difference import BundleDifference, Change, VectorChange

_MANY = 64  # rows and columns: more than a screen
_LONGEST = 160  # characters of a changed value


def print_listing(console: Console, bundles: Sequence[ListedBundle]) -> None:
    """One row for each bundle: name, version, the two models, number of behaviors, best gap recovered, size."""
    if not bundles:
        console.print("No bundles found.")
        return
    table = make_table("name", "version", "base", "thinking", numbers=("behaviors", "best gap recovered", "size"))
    for listed in bundles:
        manifest = listed.manifest
        names = (manifest.name, manifest.version, manifest.base.id, manifest.thinking.id, str(len(manifest.behaviors)))
        table.add_row(*map(plain, (*names, _best(manifest), _size(listed))))
    console.print(table)


def print_bundle(console: Console, bundle: ListedBundle, tensors: Mapping[str, np.ndarray]) -> None:
    """A bundle's models, steering, behaviors, similarity of its vectors, results, and folder."""
    manifest = bundle.manifest
    parts: list[RenderableType] = [plain(manifest.description.strip()), Text(), _facts(bundle)]
    parts += [_behaviors(manifest), *_cosines(manifest, tensors)]
    if manifest.results:
        parts.append(_results(manifest))
    title = plain(f"{manifest.name} {manifest.version}", style="bold")
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(1, 2)))


def _best(manifest: Manifest) -> str:
    known = [(result.gap_recovered, result) for result in manifest.results if result.gap_recovered is not None]
    if not known:
        return ABSENT
    _, best = max(known, key=lambda pair: pair[0])
    return f"{gap(best)} {best.task}"


def _size(bundle: ListedBundle) -> str:
    files = [path for path in bundle.path.iterdir() if path.is_file()] if bundle.path.is_dir() else []
    size = sum(path.stat().st_size for path in files)
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
        "held out": "; ".join(f"{name} {value:g}" for name, value in training.holdout.items()) or "no metrics",
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
    table = make_table("latent", "key", "norm", "behavior", "example")
    for behavior in sorted(manifest.behaviors, key=lambda behavior: behavior.latent):
        example = behavior.examples[0] if behavior.examples else ""
        row = (str(behavior.latent), behavior.key, f"{behavior.norm:.3g}", behavior.title, example)
        table.add_row(*map(plain, row))
    return table


def _cosines(manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> list[RenderableType]:
    """Cosine similarities of the bias and all vectors, in hundredths; the columns are latents."""
    import numpy as np

    named = sorted(manifest.behaviors, key=lambda behavior: behavior.latent)
    if len(named) > _MANY:
        return [Text(f"cosine similarities are shown for at most {_MANY} behaviors")]
    rows = np.stack([tensors["bias"], *(tensors[behavior.tensor] for behavior in named)]).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / np.where(np.outer(norms, norms) > 0, np.outer(norms, norms), 1)
    labels = ["bias", *(str(behavior.latent) for behavior in named)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for label in ("", *labels):
        table.add_column(label, justify="right")
    for label, row in zip(labels, cosines, strict=True):
        styles = ["bold" if abs(c) >= 0.75 else "" if abs(c) >= 0.25 else "dim" for c in row]
        cells = [Text(f"{100 * c:.0f}", style=style) for c, style in zip(row, styles, strict=True)]
        table.add_row(Text(label, style="bold"), *cells)
    return [Text("cosine similarity of the vectors, in hundredths, by latent", style="bold"), table]


def _results(manifest: Manifest) -> Table:
    """One column for each task: there are few, and many arms."""
    results = manifest.results[:_MANY]
    arms = list(dict.fromkeys(arm for result in results for arm in result.scores))[:_MANY]
    table = make_table("", numbers=[result.task for result in results])
    for arm in arms:
        table.add_row(plain(arm), *(f"{r.scores[arm]:.1%}" if arm in r.scores else "" for r in results))
    table.add_row("gap recovered", *(gap(result) for result in results))
    table.add_row("steered", *(f"{result.steered_fraction:.1%}" for result in results))
    table.add_row("changed", *(f"{result.changed_fraction:.1%}" for result in results))
    table.add_row("documents", *(f"{result.documents:,}" for result in results))
    return table


def print_difference(console: Console, difference: BundleDifference) -> None:
    """The changed fields, the vectors by cosine and norm, and the version step that the changes need."""
    before, after = difference.before, difference.after
    console.print(plain(f"{before.identity} -> {after.identity}", style="bold"))
    if difference.step is None:
        console.print("Nothing differs.")
        return
    if any(not vector.same or vector.before != vector.after for vector in difference.vectors):
        console.print(_vectors(difference.vectors))
    if fields := [change for change in difference.changes if not change.what.startswith("tensor vector.")]:
        console.print(_changes(fields))
    old, new = before.manifest, after.manifest
    if old.name != new.name:
        console.print(plain(f"Between versions of one bundle this would be a {difference.step} step."))
        return
    least = versions.following(old.version, difference.step)
    enough = f"{new.version} is {'enough' if difference.enough else 'not enough'}."
    line = f"This needs a {difference.step} step: {old.version} -> {least} or above. {enough}"
    console.print(plain(line, style="" if difference.enough else "bold"))


def _vectors(vectors: Sequence[VectorChange]) -> Table:
    table = make_table("vector", "in the other", "cosine", "norm", "cosine of encoder rows")
    for one in vectors:
        detector = "" if one.detector is None else f"{one.detector:.3f}"
        change = one.norm_after / one.norm_before - 1 if one.norm_before else 0.0
        norms = f"{one.norm_before:.4g} -> {one.norm_after:.4g} ({change:+.1%})"
        other = "" if one.before == one.after else f"most like {one.after}"
        table.add_row(*map(plain, (one.before, other, f"{one.cosine:.3f}", norms, detector)))
    return table


def _changes(changes: Sequence[Change]) -> Table:
    table = make_table("field", "before", "after", "needs")
    for what, before, after, step in _rows(changes):
        table.add_row(plain(what), _value(before), _value(after), Text(step))
    return table


def _rows(changes: Sequence[Change]) -> Iterator[tuple[str, Any, Any, str]]:
    """(field, before, after, step), where all behaviors, all tensors, and many texts of behaviors share a row."""
    by_kind: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        by_kind.setdefault((_kind(change), change.step), []).append(change)
    for (kind, step), alike in by_kind.items():
        names = ", ".join(change.what.partition(" ")[2] for change in alike)
        if kind == "behaviors":
            removed = alike[0].after is None
            yield kind, names if removed else None, None if removed else names, step
        elif kind == "tensors" and len(alike) > 1:
            yield kind, None, f"other values: {names}", step
        elif kind == "texts" and len(alike) > 3:
            changed = dict.fromkeys(change.what.partition(".")[0] for change in alike)
            yield kind, None, f"other titles, descriptions or examples: {', '.join(changed)}", step
        else:
            for change in alike:
                yield change.what, *_narrowed(change.before, change.after), step


def _kind(change: Change) -> str:
    for begin, kind in (("behavior ", "behaviors"), ("tensor ", "tensors")):
        if change.what.startswith(begin):
            return kind
    return "texts" if change.what.endswith((".title", ".description", ".examples")) else change.what


def _narrowed(before: Any, after: Any) -> tuple[Any, Any]:
    """Only the entries that differ, where both are mappings or JSON texts of mappings."""
    first, second = _entries(before), _entries(after)
    if first is None or second is None:
        return before, after
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    one, other = ("; ".join(f"{name} {of[name]}" for name in names if name in of) for of in (first, second))
    return one, other


def _entries(value: Any) -> dict[str, Any] | None:
    """The entries of nested mappings by dotted name; None for anything else."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return dict(_leaves(value)) if isinstance(value, dict) else None


def _leaves(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _value(value: Any) -> Text:
    if value is None:
        return Text(ABSENT, style="dim")
    if isinstance(value, Result):
        scores = ", ".join(f"{arm} {score:.1%}" for arm, score in value.scores.items())
        return plain(f"{scores}; gap {gap(value)}; {value.documents} documents")
    if isinstance(value, (tuple, list)):
        value = ", ".join(map(str, value))
    return plain(clip(f"{value[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value), _LONGEST))
