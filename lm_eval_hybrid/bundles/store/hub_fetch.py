"""Bundles from the Hugging Face hub, into the cache, through the hub's own client.

A commit that was fetched is served from the cache. A branch or a tag is asked for each time; where the network is off
it is what it was last. Of a repository's files only those are taken that the manifest there lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, parse
from lm_eval_hybrid.bundles.store.archive import shown_as
from lm_eval_hybrid.bundles.store.cache import Fetched, arriving, cache_folder, checked, not_here, offline
from lm_eval_hybrid.bundles.store.download import brief
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular, write_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The name is a folder's too, with `--` for `/`; the hub itself allows neither `--` nor `..` in it.
REPO_PATTERN = r"(?![^@#]*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"

_REVISION_PATTERN = r"(?![^#]*\.\.)[A-Za-z0-9_][A-Za-z0-9._/+-]{0,79}"
_ADDRESS = re.compile(
    rf"hub:(?P<repo>{REPO_PATTERN})(@(?P<revision>{_REVISION_PATTERN}))?(#sha256=(?P<sha256>[0-9a-f]{{64}}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 30.0  # seconds that the hub has to answer a question


@dataclass(frozen=True)
class _Address:
    shown: str  # how messages begin
    repo: str
    revision: str
    sha256: str | None  # of the manifest, which has the digests of the other files

    @property
    def names_commit(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class _Answer:
    """What the hub says of a revision: the commit that it is, and the files there with their sizes, if it gives any."""

    commit: str
    sizes: dict[str, int | None]


def fetch(spec: str) -> Fetched:
    """The bundle at `hub:org/repo`, with `@` and a branch, tag or commit, and with `#sha256=` of its behavior.yaml.

    Both are optional; without the first it is branch main.

    Raises:
        HybridError: where it cannot be had, or is not the sound bundle that the address requires.
    """
    address = _parse(spec)
    home = cache_folder() / "hub" / address.repo.replace("/", "--")
    record = home / "refs" / quote(address.revision, safe="")
    answer = None
    if address.names_commit and (home / address.revision).is_dir():
        commit = address.revision
    elif offline():
        commit = _recorded(address, home, record)
    else:
        answer = _ask(address)
        commit = answer.commit
    folder = home / commit
    if answer and not folder.is_dir():
        _download(address, answer, folder)
    digest = checked(folder, address.shown).manifest_sha256
    _require_digest(address, digest)
    if answer and not address.names_commit:
        write_file(record, f"{commit}\n".encode())
    return Fetched(folder, pinned(address.repo, commit, digest))


def pinned(repo: str, commit: str, manifest_sha256: str) -> str:
    """The address that never means anything but the bundle with this manifest in this commit."""
    return f"hub:{repo}@{commit}#sha256={manifest_sha256}"


@contextmanager
def asking(address: str) -> Iterator[HfApi]:
    """The hub's client. Whatever it raises in the block becomes a HybridError, one line about `address`."""
    from huggingface_hub import HfApi, errors

    if offline():
        raise HybridError(
            f"{address}: the hub must be asked; found HF_HUB_OFFLINE set; unset it where there is a network"
        )
    try:
        yield HfApi()
    except HybridError:
        raise
    except errors.RevisionNotFoundError as error:
        raise HybridError(
            f"{address}: must name a branch, tag or commit; found none such; mend what follows @"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HybridError(
            f"{address}: must be a repository that you may use; found none; mend its name, or use `hf auth login`"
        ) from error
    except Exception as error:  # what an odd answer makes the client raise has no common name
        # Of a failed download the client says that its cache, which is empty here, has no such file either.
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        raise HybridError(
            f"{address}: the hub must do as asked; found {type(cause).__name__}: {brief(cause)}; "
            "check the address and the connection, and try again"
        ) from error


def _parse(spec: str) -> _Address:
    match = _ADDRESS.fullmatch(spec)
    if match is None:
        raise HybridError(
            f"behaviors={brief(spec)}: must be hub:org/repo, hub:org/repo@revision or "
            "hub:org/repo@revision#sha256=<64 hex digits>; found another form; mend the address"
        )
    return _Address(f"behaviors={spec}", match["repo"], match["revision"] or "main", match["sha256"])


def _recorded(address: _Address, home: Path, record: Path) -> str:
    """The commit that the revision was when it was last asked for."""
    commit = read_regular(record, 100).decode("ascii", "replace").strip() if record.is_file() else ""
    if not _COMMIT.fullmatch(commit) or not (home / commit).is_dir():
        raise not_here(address.shown, home)
    return commit


def _ask(address: _Address) -> _Answer:
    with asking(address.shown) as api:
        info = api.model_info(address.repo, revision=address.revision, files_metadata=True, timeout=_TIMEOUT)
        answer = _Answer(str(info.sha), {file.rfilename: file.size for file in info.siblings or ()})
    if not _COMMIT.fullmatch(answer.commit) or (address.names_commit and answer.commit != address.revision):
        raise _refusal(address, "the hub must answer with the commit that was asked for", answer.commit)
    return answer


def _download(address: _Address, answer: _Answer, folder: Path) -> None:
    with arriving(folder) as (scratch, staging), shown_as(staging, address.shown):
        staging.mkdir()
        # The manifest first: it says which of the other files there are the bundle's.
        data = _file(address, answer, MANIFEST_FILE, strict_yaml.MAX_BYTES, scratch)
        _require_digest(address, contents.sha256(data))
        (staging / MANIFEST_FILE).write_bytes(data)
        left = contents.MAX_BYTES
        for name in parse(data, staging / MANIFEST_FILE).files:
            left -= (staging / name).write_bytes(_file(address, answer, name, left, scratch))
        contents.read(staging)


def _file(address: _Address, answer: _Answer, name: str, limit: int, scratch: Path) -> bytes:
    size = answer.sizes.get(name)
    if not isinstance(size, int) or not 0 <= size <= limit:
        found = size if size is not None else "one of unknown size" if name in answer.sizes else "none"
        raise _refusal(address, f"the repository must hold {name}, of at most {limit:,} bytes", found)
    with asking(address.shown) as api:
        # Not into the hub's own cache: what is there under this commit may be something else.
        path = Path(api.hf_hub_download(address.repo, name, revision=answer.commit, cache_dir=scratch / "hub"))
        # The client files what comes under the commit that the server says it is of.
        if path.parent.name != answer.commit:
            raise _refusal(address, f"{name} must come from commit {answer.commit}", path.parent.name)
        with shown_as(path, f"{address.shown}: {name}"):
            return read_regular(path, size)


def _require_digest(address: _Address, found: str) -> None:
    if address.sha256 not in (None, found):
        raise _refusal(address, f"{MANIFEST_FILE} must have this sha256", found)


def _refusal(address: _Address, required: str, found: object) -> HybridError:
    return HybridError(f"{address.shown}: {required}; found {brief(found)}; ask whoever gave you the address")
