"""Two bundles side by side in the terminal: `behaviors diff`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.behaviors import versions
from lm_eval_hybrid.behaviors.card import gap
from lm_eval_hybrid.behaviors.difference import Change, Difference, Moved
from lm_eval_hybrid.behaviors.manifest import Result
from lm_eval_hybrid.report.bundles import plain, plain_table

_LONGEST = 160  # characters of a value: a recipe is long, and its end says no more than that it differs


def print_difference(console: Console, difference: Difference) -> None:
    """What changed, the vectors by cosine and norm, and the version step that this calls for."""
    before, after = difference.before, difference.after
    console.print(plain(f"{before.identity} -> {after.identity}", style="bold"))
    if not difference.changes:
        console.print("Nothing differs.")
        return
    console.print()
    if any(not moved.same or moved.before != moved.after for moved in difference.moved):
        console.print(_vectors(difference.moved))
        console.print()
    if fields := [change for change in difference.changes if not change.what.startswith("tensor vector.")]:
        console.print(_changes(fields))
        console.print()
    console.print(_verdict(difference))


def _vectors(moved: Sequence[Moved]) -> Table:
    table = plain_table("vector", "in the other", "cosine", "norm", "cosine of detectors")
    for one in moved:
        detector = "" if one.detector is None else f"{one.detector:.3f}"
        change = one.norm_after / one.norm_before - 1 if one.norm_before else 0.0
        norms = f"{one.norm_before:.4g} -> {one.norm_after:.4g} ({change:+.1%})"
        other = "" if one.before == one.after else f"most like {one.after}"
        table.add_row(*map(plain, (one.before, other, f"{one.cosine:.3f}", norms, detector)))
    return table


def _changes(changes: Sequence[Change]) -> Table:
    table = plain_table("what", "before", "after", "calls for")
    for change in changes:
        table.add_row(plain(change.what), _value(change.before), _value(change.after), Text(change.step))
    return table


def _value(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, Result):
        scores = ", ".join(f"{arm} {score:.1%}" for arm, score in value.scores.items())
        return plain(f"{scores}; gap {gap(value)}; {value.documents} documents")
    words = plain(value)
    if len(words) > _LONGEST:
        words.truncate(_LONGEST, overflow="ellipsis")
    return words


def _verdict(difference: Difference) -> Text:
    before, after, step = difference.before.manifest, difference.after.manifest, difference.step
    assert step is not None
    if before.name != after.name:
        return plain(f"Between versions of one bundle this would be a {step} step.")
    least = versions.following(before.version, step)
    line = f"This calls for a {step} step: {before.version} -> {least} or above. "
    if difference.enough:
        return plain(f"{line}{after.version} is enough.")
    return plain(f"{line}{after.version} is not enough.", style="bold")
