"""Bundles elsewhere: `hub:org/repo@revision` and `https://...#sha256=...` addresses, fetched once, checked and kept.

Nothing here touches the network where HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from lm_eval_hybrid.bundles.store import archive, hub_fetch
from lm_eval_hybrid.bundles.store.cache import Fetched, arriving, cache_folder, checked, not_here, offline
from lm_eval_hybrid.bundles.store.download import brief, download
from lm_eval_hybrid.common.errors import HybridError

_HTTPS = re.compile(r"(?P<url>https://[^\s#]+)#sha256=(?P<sha256>[0-9a-f]{64})")

logger = logging.getLogger(__name__)


def is_address(spec: str) -> bool:
    """Whether `spec` is an address, not a path or a name."""
    return spec.startswith(("hub:", "https:", "http:"))


def fetch(spec: str) -> Path:
    """The folder that holds the bundle at an address. Raises as `fetched` does."""
    return fetched(spec).folder


def fetched(spec: str) -> Fetched:
    """The bundle at an address, from the cache or else from where it is.

    spec: `hub:org/repo@revision`, with `#sha256=` of its behavior.yaml or without; or `https://...` of an archive, with
    `#sha256=` of that.

    Raises:
        HybridError: where it cannot be had, or is not the sound bundle that the address requires.
    """
    try:
        found = hub_fetch.fetch(spec) if spec.startswith("hub:") else _from_https(spec)
    except OSError as error:
        raise HybridError(
            f"behaviors={brief(spec)}: {cache_folder()} must take what is fetched; found {brief(error)}; "
            "make room there, or set XDG_CACHE_HOME"
        ) from error
    logger.info("behaviors=%s is %s", spec, found.pinned)
    return found


def _from_https(spec: str) -> Fetched:
    match = _HTTPS.fullmatch(spec)
    if match is None:
        digest = "another form" if "#sha256=" in spec else "no digest"
        raise HybridError(
            f"behaviors={brief(spec)}: must be https://host/path.zip#sha256=<64 hex digits of the archive>; "
            f"found {'plain http' if spec.startswith('http:') else digest}; "
            "`lm-eval-hybrid behaviors pack` prints the digest, and so does `sha256sum`"
        )
    folder = cache_folder() / "https" / match["sha256"]
    if not folder.is_dir():
        if offline():
            raise not_here(f"behaviors={spec}", folder)
        _download(match["url"], match["sha256"], folder)
    checked(folder, f"behaviors={spec}")
    return Fetched(folder, spec)


def _download(url: str, digest: str, folder: Path) -> None:
    with arriving(folder) as (scratch, staging):
        packed = scratch / "bundle.zip"
        found = download(url, packed, archive.MAX_BYTES)
        if found != digest:
            raise HybridError(
                f"{brief(url)}: the archive must have sha256 {digest}; found {found}; ask whoever gave you the address"
            )
        with archive.shown_as(packed, brief(url)):
            archive.unpack(packed, staging)
