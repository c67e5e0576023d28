"""Repeats the experiment of a gap.json, and says what came out differently."""

from collections.abc import Iterator, Mapping
from typing import Any

_CIRCUMSTANCES = ("bundle", "models", "versions", "hardware")


def circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two runs were made with, where that differs: one line each."""
    pairs = ((name, then.get(name) or {}, now.get(name) or {}) for name in _CIRCUMSTANCES)
    return [
        f"{name} {key}: {old.get(key)} then, {new.get(key)} now"
        for name, old, new in pairs
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What came out differently: one line for each arm and task."""
    return list(_differences(then, now))


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = ({(run["task"], run["arm"]): run for run in content["runs"]} for content in (then, now))
    for task, arm in sorted(old.keys() | new.keys()):
        first, second = old.get((task, arm)), new.get((task, arm))
        where = f"{task}, arm {arm}"
        if first is None or second is None:
            yield f"{where}: run {'only now' if first is None else 'only then'}"
        elif first["documents"] != second["documents"]:
            yield f"{where}: {first['documents']} documents then, {second['documents']} now"
        elif first["right"] != second["right"]:
            pairs = list(zip(first["right"], second["right"], strict=True))
            gained, lost = pairs.count(("0", "1")), pairs.count(("1", "0"))
            yield f"{where}: {gained} documents right that were wrong, {lost} wrong that were right"
        elif first["answers_sha256"] != second["answers_sha256"]:
            yield f"{where}: other answers, all as right or wrong as they were"
