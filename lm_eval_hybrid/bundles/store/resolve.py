"""Where bundles are: a path, a name with or without version, or an address becomes a bundle's folder.

Searched in order: a path; the folder LM_EVAL_HYBRID_BEHAVIORS; the platform's data folder; the bundles that
come with the package. A folder of bundles holds <name>/<version>/behavior.yaml. `name` alone is its highest
version in all of them, `name@1` the highest that begins so (see `versions.best`); where two folders hold the
same version, the first one counts. `hub:` and `https:` addresses are fetched, see `remote`. Manifests are read,
tensors are not.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, NAME_PATTERN, Manifest, read
from lm_eval_hybrid.bundles.store import remote
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.paths import bundles_dir

FOLDER_VARIABLE = "LM_EVAL_HYBRID_BEHAVIORS"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedBundle:
    """A bundle that can be named: what it says about itself, and its folder."""

    manifest: Manifest
    path: Path


def folders() -> tuple[Path, ...]:
    """The folders searched for named bundles, in order; they need not exist."""
    own = os.environ.get(FOLDER_VARIABLE)
    return (*([_path(own)] if own else []), _data_home() / "lm-eval-hybrid" / "behaviors", bundles_dir())


def user_folder() -> Path:
    """The folder that bundles of one's own go to: the first that is searched."""
    return folders()[0]


def listing() -> list[ListedBundle]:
    """The bundles that can be named, by name, highest version first; those that are unsound are logged."""
    found = []
    available = _available()
    for name, version in sorted(available, key=lambda key: versions.key(key[1]), reverse=True):
        path = available[name, version]
        try:
            found.append(ListedBundle(_read_as(path, name, version), path))
        except HybridError as error:
            logger.warning("bundle left out: %s", error)
    return sorted(found, key=lambda listed: listed.manifest.name)


def resolve(spec: str) -> Path:
    """The folder of the bundle that `spec` means.

    spec: the path of a version's folder or of the folder that holds its versions; `name`, `name@1`, `name@1.2` or
    `name@1.2.3`; `hub:org/repo@revision`; `https://...#sha256=...`. Which folder it is is logged.
    Raises HybridError where there is none, saying what there is.
    """
    path = remote.fetch(spec) if remote.is_address(spec) else _here(spec)
    logger.info("behaviors=%s is the bundle in %s", spec, path)
    return path


def _here(spec: str) -> Path:
    if path := _at_path(spec):
        return path
    # What can only be a path must be one; but a folder that happens to have a bundle's name does not hide it.
    if os.sep in spec or "/" in spec or spec.startswith((".", "~")):
        found = "a folder without it" if _path(spec).is_dir() else "no such folder"
        raise HybridError(
            f"behaviors={spec}: a bundle's folder must hold {MANIFEST_FILE} (or versions that do); "
            f"found {found}; mend the path, or see `lm-eval-hybrid behaviors list`"
        )
    name, at, wanted = spec.partition("@")
    available = _available()
    found = sorted((v for n, v in available if n == name), key=versions.key)
    if not found:
        raise HybridError(_unknown(spec, name, sorted({n for n, _ in available})))
    version = versions.best(found, wanted) if wanted or not at else None
    if version is None:
        raise HybridError(
            f"behaviors={spec}: no version {wanted or '(empty)'} of {name}; found {', '.join(found)}; "
            f"use one of these, or {name} for the highest"
        )
    path = available[name, version]
    _read_as(path, name, version)
    return path


def _available() -> dict[tuple[str, str], Path]:
    """Folder by (name, version), from the folders' names alone; earlier folders win."""
    found: dict[tuple[str, str], Path] = {}
    for folder in folders():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if re.fullmatch(NAME_PATTERN, path.name):
                for version, at in _versions(path).items():
                    found.setdefault((path.name, version), at)
    return found


def _versions(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    named = (path for path in folder.iterdir() if versions.is_version(path.name))
    return {path.name: path for path in named if (path / MANIFEST_FILE).is_file()}


def _at_path(spec: str) -> Path | None:
    if not spec:
        return None
    path = _path(spec)
    if (path / MANIFEST_FILE).is_file():
        return path
    found = _versions(path)
    highest = versions.best(found)
    return found[highest] if highest else None


def _read_as(path: Path, name: str, version: str) -> Manifest:
    manifest, _ = read(path)
    if (manifest.name, manifest.version) != (name, version):
        raise HybridError(
            f"{path}: the folders' names must be the manifest's name and version; found "
            f"{manifest.name}@{manifest.version} in the manifest; rename the folder"
        )
    return manifest


def _unknown(spec: str, name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "name one of these, or give a path"
    searched = ", ".join(str(folder) for folder in folders())
    return (
        f"behaviors={spec}: a bundle must be a path, or a name found in {searched}; "
        f"found {', '.join(names) or 'no bundles'}; {advice}"
    )


def _data_home() -> Path:
    """The platform's folder for the user's application data."""
    if sys.platform == "win32":
        return _path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    if sys.platform == "darwin":
        return _path("~/Library/Application Support")
    return _path(os.environ.get("XDG_DATA_HOME") or "~/.local/share")


def _path(text: str) -> Path:
    # Path.expanduser raises for a user without a home, as in some containers; this leaves the `~` in place.
    return Path(os.path.expanduser(text))
