"""Find a bundle's folder by path, by name, with or without version, or by address.

Searched in order: a path; the folder LM_EVAL_HYBRID_BEHAVIORS; the user's data folder; the bundles that come with the
package. A folder of bundles holds <name>/<version>/behavior.yaml. `name` alone is its highest version in all of them,
`name@1` the highest that begins so (see `versions.best`); of the same version in two folders the first counts. Reads
manifests, not tensors.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, NAME_PATTERN, Manifest, read
from lm_eval_hybrid.bundles.store import hub
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.paths import bundles_dir

FOLDER_VARIABLE = "LM_EVAL_HYBRID_BEHAVIORS"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedBundle:
    """A bundle that has a name: its manifest and its folder."""

    manifest: Manifest
    path: Path


def folders() -> tuple[Path, ...]:
    """The folders searched for named bundles, in order; they need not exist."""
    own = os.environ.get(FOLDER_VARIABLE)
    data = platformdirs.user_data_path("lm-eval-hybrid", appauthor=False)
    return (*([_path(own)] if own else []), data / "behaviors", bundles_dir())


def user_folder() -> Path:
    """The folder for the user's own bundles: the first that is searched."""
    return folders()[0]


def listing() -> list[ListedBundle]:
    """All named bundles, by name, highest version first; logs a warning for each unsound one."""
    found = []
    available = _available()
    for name, version in sorted(available, key=lambda key: versions.key(key[1]), reverse=True):
        path = available[name, version]
        try:
            found.append(ListedBundle(_read_as(path, name, version), path))
        except HybridError as error:
            log.warning("bundle left out: %s", error)
    return sorted(found, key=lambda listed: listed.manifest.name)


def resolve(spec: str) -> Path:
    """The folder of the bundle that `spec` names; logs which one.

    Args:
        spec: the path of a version's folder, or of the folder that holds its versions; `name`, `name@1`, `name@1.2` or
            `name@1.2.3`; `hub:org/repo@revision`.

    Raises HybridError if there is none, saying what there is.
    """
    path = hub.fetch(spec) if spec.startswith("hub:") else _local(spec)
    log.info("behaviors=%s is the bundle in %s", spec, path)
    return path


def _local(spec: str) -> Path:
    if path := _at_path(spec):
        return path
    # A path that cannot be a name must exist; a folder that only happens to have a bundle's name does not hide it.
    if os.sep in spec or "/" in spec or spec.startswith((".", "~")):
        needed = "a bundle is a folder, NAME, NAME@VERSION or hub:ORG/REPO@REVISION"
        found = f"no folder with {MANIFEST_FILE}, or with versions that have one"
        raise HybridError(f"behaviors={spec}: {found}; {needed}; see `lm-eval-hybrid behaviors list`")
    name, at, prefix = spec.partition("@")
    available = _available()
    known = sorted((v for n, v in available if n == name), key=versions.key)
    if not known:
        names = sorted({n for n, _ in available})
        close = difflib.get_close_matches(name, names, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "name one of these, or give a path"
        found = f"no such bundle in {', '.join(map(str, folders()))}; there are {', '.join(names) or 'no bundles'}"
        raise HybridError(f"behaviors={spec}: {found}; {advice}")
    version = versions.best(known, prefix) if prefix or not at else None
    if version is None:
        found = f"no version {prefix or '(empty)'} of {name}; there are {', '.join(known)}"
        raise HybridError(f"behaviors={spec}: {found}; use one of these, or {name} for the highest")
    path = available[name, version]
    _read_as(path, name, version)
    return path


def _available() -> dict[tuple[str, str], Path]:
    """Bundles' folders by (name, version), from the folders' names alone; earlier folders win."""
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
        found = f"its manifest says {manifest.name}@{manifest.version}"
        raise HybridError(f"{path}: {found}; the folders' names must be the same; rename the folder")
    return manifest


def _path(text: str) -> Path:
    # Path.expanduser raises for a user without a home, as in some containers; this leaves the `~` in place.
    return Path(os.path.expanduser(text))
