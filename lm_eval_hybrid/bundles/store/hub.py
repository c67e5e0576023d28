"""Bundles on the Hugging Face hub: a model repository holds one bundle, a commit and a tag for each version."""

from __future__ import annotations

import re
from pathlib import Path

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import check_target
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE
from lm_eval_hybrid.bundles.store import hub_fetch, remote
from lm_eval_hybrid.bundles.store.archive import read_files
from lm_eval_hybrid.bundles.store.download import brief
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Put the bundle in `folder` on the hub: one commit, tagged `v` and its version. Returns its pinned address.

    Args:
        folder: the bundle's; other files in it stay where they are.
        repo: `org/name` of a model repository, which is made where there is none.
        private: make it one that only its owners can read; what is there already stays as it is.

    Raises:
        HybridError: where the bundle is unsound, that version is there already, or the hub refuses.
    """
    if not re.fullmatch(hub_fetch.REPO_PATTERN, repo):
        raise HybridError(f"{brief(repo)}: must be org/name of a repository; found another form; mend it")
    found, encoded = read_files(folder)
    tag = f"v{found.manifest.version}"
    with hub_fetch.asking(f"hub:{repo}") as api:
        from huggingface_hub import CommitOperationAdd

        # Not False: that would make a repository public whose organisation keeps its own private.
        api.create_repo(repo, repo_type="model", private=private or None, exist_ok=True)
        if tag in (there.name for there in api.list_repo_refs(repo).tags):
            raise HybridError(
                f"hub:{repo}@{tag}: a version is pushed once; found it there; "
                "make another with `lm-eval-hybrid behaviors new-version`"
            )
        additions = [CommitOperationAdd(name, data) for name, data in encoded.items()]
        message = f"{found.manifest.name} {found.manifest.version}"
        commit = api.create_commit(repo, additions, commit_message=message).oid
        api.create_tag(repo, tag=tag, revision=commit)
    return hub_fetch.pinned(repo, commit, found.manifest_sha256)


def pull(address: str, into: Path) -> Path:
    """Copy the bundle at an address to `into`/name/version, and return that folder; it may be there already.

    Raises:
        HybridError: where `remote.fetched` does, or the folder holds something else.
    """
    found, encoded = read_files(remote.fetch(address))
    target = (into / found.manifest.name / found.manifest.version).resolve()
    if (target / MANIFEST_FILE).is_file():
        # Its digest covers all the other files, which are compared with it here.
        if contents.read(target).manifest_sha256 == found.manifest_sha256:
            return target
        raise HybridError(
            f"{target}: must be the bundle at {address}, or nothing; found another of that name and version; "
            "pull it into another folder, or move that one away"
        )
    check_target(target, overwrite=False)
    with files.appearing(target) as staging:
        files.write(staging, encoded)
    return target
