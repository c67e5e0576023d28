"""Two bundles side by side in the terminal: `behaviors diff`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.card import gap
from lm_eval_hybrid.bundles.difference import BundleDifference, Change, VectorChange
from lm_eval_hybrid.bundles.manifest import Result
from lm_eval_hybrid.report.bundles import plain, plain_table

_LONGEST = 160  # characters of a value


def print_difference(console: Console, difference: BundleDifference) -> None:
    """What changed, the vectors by cosine and norm, and the version step that this calls for."""
    before, after = difference.before, difference.after
    console.print(plain(f"{before.identity} -> {after.identity}", style="bold"))
    if not difference.changes:
        console.print("Nothing differs.")
        return
    console.print()
    if any(not moved.same or moved.before != moved.after for moved in difference.vectors):
        console.print(_vectors(difference.vectors))
        console.print()
    if fields := [change for change in difference.changes if not change.what.startswith("tensor vector.")]:
        console.print(_changes(fields))
        console.print()
    console.print(_verdict(difference))


def _vectors(moved: Sequence[VectorChange]) -> Table:
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
    for what, before, after, step in _rows(changes):
        table.add_row(plain(what), _value(before), _value(after), Text(step))
    return table


def _rows(changes: Sequence[Change]) -> Iterator[tuple[str, Any, Any, str]]:
    """The changes, those of one kind in one row: behaviors that went or came, tensors, and words of behaviors."""
    by_kind: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        by_kind.setdefault((_kind(change), change.step), []).append(change)
    for (kind, step), alike in by_kind.items():
        names = ", ".join(change.what.partition(" ")[2] for change in alike)
        if kind == "behaviors":
            gone = alike[0].after is None
            yield kind, names if gone else None, None if gone else names, step
        elif kind == "tensors" and len(alike) > 1:
            yield kind, None, f"other values: {names}", step
        elif kind == "words" and len(alike) > 3:
            changed = dict.fromkeys(change.what.partition(".")[0] for change in alike)
            yield kind, None, f"other titles, descriptions or examples: {', '.join(changed)}", step
        else:
            for change in alike:
                yield change.what, *_narrowed(change.before, change.after), step


def _kind(change: Change) -> str:
    for begin, kind in (("behavior ", "behaviors"), ("tensor ", "tensors")):
        if change.what.startswith(begin):
            return kind
    return "words" if change.what.endswith((".title", ".description", ".examples")) else change.what


def _narrowed(before: Any, after: Any) -> tuple[Any, Any]:
    """Of two mappings, or the JSON texts of two, only what differs."""
    pair = [_mapping(before), _mapping(after)]
    if None in pair:
        return before, after
    first, second = (dict(_leaves(one)) for one in pair)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return tuple("; ".join(f"{name} {one[name]}" for name in names if name in one) for one in (first, second))


def _mapping(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _leaves(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _value(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, Result):
        scores = ", ".join(f"{arm} {score:.1%}" for arm, score in value.scores.items())
        return plain(f"{scores}; gap {gap(value)}; {value.documents} documents")
    if isinstance(value, (tuple, list)):
        value = ", ".join(map(str, value))
    words = plain(f"{value[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else value)
    if len(words) > _LONGEST:
        words.truncate(_LONGEST, overflow="ellipsis")
    return words


def _verdict(difference: BundleDifference) -> Text:
    before, after, step = difference.before.manifest, difference.after.manifest, difference.step
    assert step is not None
    if before.name != after.name:
        return plain(f"Between versions of one bundle this would be a {step} step.")
    least = versions.following(before.version, step)
    line = f"This calls for a {step} step: {before.version} -> {least} or above. "
    if difference.enough:
        return plain(f"{line}{after.version} is enough.")
    return plain(f"{line}{after.version} is not enough.", style="bold")
