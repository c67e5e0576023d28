"""Which format a source is of, and what reads and writes each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.wanted import Chosen, Wanted

# repeng's files are llama.cpp's: one format under two names.
_MODULES = {
    "reference": "reference",
    "mapping": "mapping",
    "saelens": "saelens",
    "gguf": "gguf",
    "repeng": "gguf",
    "steered": "steered",
}
READABLE = tuple(_MODULES)
WRITABLE = ("steered", "gguf", "repeng", "saelens")


def read(source: Path, wanted: Wanted, format: str | None = None) -> Bundle:
    """The bundle in another program's files; of the format that they look like, unless it is given.

    Raises:
        HybridError: where there is nothing, or nothing of a format known here, or it makes no bundle.
    """
    if not source.exists():
        raise HybridError(f"{source}: what is imported must be a file or folder; found none; mend the path")
    return _module(format or detect(source)).read(source, wanted)


def write(bundle: Bundle, chosen: Chosen, target: Path, format: str) -> list[str]:
    """Write a bundle in another program's format; returns what that cannot hold, a line each.

    Raises:
        HybridError: where the target is there already, or the format needs a choice that was not made.
    """
    writer: Callable[[Bundle, Chosen, Path], list[str]] = _module(format).write
    return writer(bundle, chosen, target)


def detect(source: Path) -> str:
    """The format that a file's ending or a folder's files speak of."""
    endings = {".gguf": "gguf", ".pt": "steered", ".pth": "steered", ".csv": "steered"}
    if source.is_file() and source.suffix in endings:
        return endings[source.suffix]
    if source.is_dir():
        if (source / "mapping.yaml").is_file():
            return "mapping"
        if (source / "cfg.json").is_file():
            return "saelens"
        if next(source.rglob("*.pt"), None) is not None:
            return "reference"
    raise HybridError(
        f"{source}: what is imported must look like one of {', '.join(READABLE)}; found "
        f"{'a folder' if source.is_dir() else 'a file'} of another kind; say which with --format"
    )


def _module(format: str):  # noqa: ANN202 - a module has no narrower type
    return importlib.import_module(f"lm_eval_hybrid.bundles.formats.{_MODULES[format]}")
