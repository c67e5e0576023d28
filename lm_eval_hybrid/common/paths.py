"""Folders that ship with the package: harness tasks, behavior bundles, the embedded pair."""

import os
from pathlib import Path

EMBEDDED = "embedded:"  # how the embedded pair's models are named: embedded:base, embedded:thinking

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


def model_path(id: str) -> str:
    """The folder or id that transformers loads: the folder of an `embedded:` model; of other ids `~` is expanded."""
    if id.startswith(EMBEDDED):
        return str(embedded_dir() / id.removeprefix(EMBEDDED))
    return os.path.expanduser(id)  # not by Path, which would turn the slash of a hub id on Windows


def _shipped(name: str) -> Path:
    # A wheel carries the repository's top-level folder as _data/<name>; an editable install has it in place.
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
