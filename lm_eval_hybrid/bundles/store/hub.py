"""Bundles on the Hugging Face hub: a model repository holds one bundle, with a commit and a tag for each version.

huggingface_hub downloads and caches; what arrives is checked like any other folder. Only files that the manifest lists
are downloaded, and only after the hub has stated sizes within a bundle's limits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import check_target
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, read
from lm_eval_hybrid.common import files, strict_yaml
from lm_eval_hybrid.common.errors import HybridError, brief

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The hub allows neither `--` nor `..` in a repository's name.
_REPO = r"(?![^@#]*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_REVISION = r"(?![^#]*\.\.)[A-Za-z0-9_][A-Za-z0-9._/+-]{0,79}"
_ADDRESS = re.compile(rf"hub:({_REPO})(?:@({_REVISION}))?(?:#sha256=([0-9a-f]{{64}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 30.0  # seconds for the hub to answer a request

log = logging.getLogger(__name__)


def fetch(address: str) -> Path:
    """The folder of the bundle at `hub:org/repo`, optionally with `@revision`, and with `#sha256=` of its manifest.

    A commit in the hub's cache is served from there. A branch or tag (default: main) is looked up each time, in the
    cache if HF_HUB_OFFLINE=1. Raises HybridError if there is no such bundle, or it is unsound.
    """
    from huggingface_hub import constants

    with _errors_about(f"behaviors={brief(address)}"):
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise HybridError(
                "not an address; it must be hub:org/repo, hub:org/repo@revision or "
                "hub:org/repo@revision#sha256=<64 hex digits>; correct it"
            )
        repo, revision, digest = match[1], match[2] or "main", match[3]
        folder = _cached(repo, revision) if constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision) else None
        folder = folder or _download(repo, revision, digest)
        try:
            found = contents.read(folder).manifest_sha256
        except HybridError as error:
            raise HybridError(f"{error}; or delete {folder} to fetch it again") from error
        _check_digest(digest, found)
    log.info("behaviors=%s is hub:%s@%s#sha256=%s", address, repo, folder.name, found)
    return folder


def pull(address: str, into: Path) -> Path:
    """Copy the bundle at an address to `into`/name/version, unless it is there already; returns that folder.

    Raises HybridError as `fetch` does, or if the folder holds something else.
    """
    found, encoded = contents.read_files(fetch(address))
    target = (into / found.manifest.name / found.manifest.version).resolve()
    # The manifest's digest covers all other files, which `read` compares with it.
    if (target / MANIFEST_FILE).is_file() and contents.read(target).manifest_sha256 == found.manifest_sha256:
        return target
    check_target(target, overwrite=False)
    with files.atomic_folder(target) as staging:
        files.write_files(staging, encoded)
    return target


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Put the bundle in `folder` on the hub in one commit, tagged `v<version>`; returns its pinned address.

    Args:
        repo: `org/name` of a model repository, created if there is none.
        private: create it as one that only its owners can read.

    Raises HybridError if the bundle is unsound, this version was pushed before, or the hub refuses.
    """
    if not re.fullmatch(_REPO, repo):
        raise HybridError(f"{brief(repo)}: not a repository's name; it must be org/name; correct it")
    found, encoded = contents.read_files(folder)
    tag = f"v{found.manifest.version}"
    with _errors_about(f"hub:{repo}"):
        from huggingface_hub import CommitOperationAdd

        api = _api()
        # None, not False, which would make a repository public in an organisation whose default is private.
        api.create_repo(repo, repo_type="model", private=private or None, exist_ok=True)
        if tag in (ref.name for ref in api.list_repo_refs(repo).tags):
            raise HybridError(
                f"{tag} exists already; a version is pushed only once; make the next one with "
                "`lm-eval-hybrid behaviors new-version`"
            )
        additions = [CommitOperationAdd(name, data) for name, data in encoded.items()]
        message = f"{found.manifest.name} {found.manifest.version}"
        commit = api.create_commit(repo, additions, commit_message=message).oid
        api.create_tag(repo, tag=tag, revision=commit)
    return f"hub:{repo}@{commit}#sha256={found.manifest_sha256}"


def _cached(repo: str, revision: str) -> Path | None:
    """The revision's folder in the hub's cache, if it has a manifest and every file that the manifest lists."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=MANIFEST_FILE, local_files_only=True))
        return folder if all((folder / name).exists() for name in read(folder)[0].files) else None
    except (OSError, ValueError):  # nothing there, or an unsound manifest
        return None


def _download(repo: str, revision: str, digest: str | None) -> Path:
    """Download the bundle's files into the hub's cache: the manifest first, which lists the others."""
    from huggingface_hub import snapshot_download

    info = _api().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    commit, sizes = str(info.sha), {file.rfilename: file.size for file in info.siblings or ()}
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(revision) and commit != revision):
        raise HybridError(f"the hub answers with commit {brief(commit)}; it must be the one in the address; try again")

    def check_size(name: str, limit: int) -> int:
        size = sizes.get(name)
        if isinstance(size, int) and 0 <= size <= limit:
            return size
        found = f"of {brief(size)} bytes" if name in sizes else "missing"
        raise HybridError(f"{name} is {found}; a bundle needs it, of at most {limit:,} bytes; ask its authors")

    check_size(MANIFEST_FILE, strict_yaml.MAX_BYTES)
    # By branch or tag name, so that the cache can resolve that name offline.
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=MANIFEST_FILE))
    if folder.name != commit:
        raise HybridError(f"the revision moved from commit {commit} to {folder.name} during the download; try again")
    manifest, data = read(folder)
    _check_digest(digest, contents.sha256(data))
    left = contents.MAX_BYTES
    for name in manifest.files:
        left -= check_size(name, left)
    snapshot_download(repo, revision=commit, allow_patterns=list(manifest.files))
    return folder


def _check_digest(required: str | None, found: str) -> None:
    if required not in (None, found):
        raise HybridError(f"{MANIFEST_FILE} has sha256 {found}; it must be the one in the address; ask its authors")


def _api() -> HfApi:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise HybridError("the hub must be reached, but HF_HUB_OFFLINE is set; unset it")
    return HfApi()


@contextmanager
def _errors_about(subject: str) -> Iterator[None]:
    """Turn whatever is raised in the block, by us or by the hub's client, into a HybridError about `subject`."""
    from huggingface_hub import errors

    try:
        yield
    except HybridError as error:
        raise HybridError(f"{subject}: {error}") from error
    except errors.RevisionNotFoundError as error:
        raise HybridError(f"{subject}: no such branch, tag or commit; correct the part after @") from error
    except errors.RepositoryNotFoundError as error:
        advice = "correct the name, or run `hf auth login`"
        raise HybridError(f"{subject}: no such repository, or it is not yours to read; {advice}") from error
    except Exception as error:  # what the client raises for odd answers has no common base class
        # If a download fails, the client reports that its cache lacks the file, and the failure as the cause.
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        raise HybridError(
            f"{subject}: the hub's client failed with {type(cause).__name__}: {brief(cause)}; check the address and "
            "the connection, and try again"
        ) from error
