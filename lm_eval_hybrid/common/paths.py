"""Folders that ship with the package: harness tasks, behavior bundles, the embedded pair."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def tasks_dir() -> Path:
    """Folder of the harness task YAMLs."""
    return _shipped("tasks")


def bundles_dir() -> Path:
    """Folder of the shipped behavior bundles, laid out <name>/<version>/."""
    return _shipped("behaviors")


def embedded_dir() -> Path:
    """Folder of the embedded pair: tokenizer/, base/, thinking/ and the test documents (*.jsonl)."""
    return _PACKAGE / "embedded" / "data"


def _shipped(name: str) -> Path:
    # A wheel carries the repository's top-level folder as _data/<name>; an editable install has it in place.
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
