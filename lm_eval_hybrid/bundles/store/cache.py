"""Where fetched bundles are kept: ordinary bundles, in folders named by what they can only be.

That is a commit of the hub, or the sha256 of an archive. So what is there is served without asking anybody, and nothing
changes under an address that names one of these.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.common.errors import HybridError


@dataclass(frozen=True)
class Fetched:
    """A sound bundle in the cache: its folder, and the address that never means anything but it."""

    folder: Path
    pinned: str


def cache_folder() -> Path:
    """The folder, in the platform's for such things, that holds what was fetched."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        home = os.environ.get("XDG_CACHE_HOME") or "~/Library/Caches"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "lm-eval-hybrid" / "bundles"


def offline() -> bool:
    """Whether the network is off, by HF_HUB_OFFLINE=1 when the hub's library was imported."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def not_here(address: str, folder: Path) -> HybridError:
    """That nothing is in the cache for an address, and the network is off."""
    return HybridError(
        f"{address}: must be in the cache while HF_HUB_OFFLINE is set; found nothing of it in {folder}; "
        "fetch it once where there is a network"
    )


@contextmanager
def arriving(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A scratch folder and a path in it; what is at that path when the block ends becomes `folder`.

    Where `folder` is there by then, another process was faster: it may be reading it, so it is left in peace.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        staging = scratch / "bundle"
        yield scratch, staging
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def checked(folder: Path, address: str) -> contents.Contents:
    """The bundle in a folder of the cache. HybridError where it is not sound any more."""
    try:
        return contents.read(folder)
    except HybridError as error:
        raise HybridError(
            f"{address}: the copy in the cache must be as it was fetched; found otherwise: {error}; "
            f"delete {folder} to have it fetched again"
        ) from error
