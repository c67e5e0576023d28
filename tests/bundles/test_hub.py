"""Bundles on a local hub: pushed, fetched into the hub's cache, checked, pulled."""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store.hub import fetch, pull, push
from lm_eval_hybrid.bundles.store.resolve import resolve
from lm_eval_hybrid.common.errors import HybridError
from tests.bundles.loopback import Hub, Reply, Repository, online

Make = Callable[..., Bundle]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub, online(monkeypatch, cache, hub.url):
        yield hub


@pytest.fixture
def saved(make_bundle: Make, tmp_path: Path) -> Path:
    make_bundle().save(tmp_path / "tiny" / "1.2.0")
    return tmp_path / "tiny" / "1.2.0"


@pytest.fixture
def commit(hub: Hub, saved: Path) -> str:
    """The commit of the bundle in org/tiny."""
    push(saved, "org/tiny")
    hub.requests.clear()
    return hub.repositories["org/tiny"].branches["main"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "behavior.yaml").read_bytes()).hexdigest()


def refused(address: str, message: str) -> None:
    with pytest.raises(HybridError, match=message) as caught:
        fetch(address)
    assert "\n" not in str(caught.value)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_nothing_heavy_is_imported_before_something_is_fetched() -> None:
    heavy = "huggingface_hub", "httpx2", "ssl", "http.client", "urllib.request", "numpy", "torch"
    code = f"import lm_eval_hybrid.bundles.store.hub, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("revision", ["", "@main", "@v1.2.0", "@COMMIT"])
def test_a_bundle_is_fetched(commit: str, saved: Path, revision: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = fetch("hub:org/tiny" + revision.replace("COMMIT", commit))
    assert folder.name == commit
    assert files(folder) == files(saved)
    pinned = f"hub:org/tiny@{commit}#sha256={manifest_digest(saved)}"
    assert pinned in caplog.text
    assert fetch(pinned) == resolve(pinned) == folder


def test_only_files_in_the_manifest_are_downloaded(hub: Hub, commit: str, saved: Path) -> None:
    hub.repositories["org/tiny"].commits[commit]["run.sh"] = b"rm -rf /"
    assert files(fetch("hub:org/tiny")) == files(saved)
    assert not [request for request in hub.requests if "run.sh" in request or ".gitattributes" in request]


def test_a_cached_commit_is_served_without_a_request(hub: Hub, commit: str, saved: Path) -> None:
    folder = fetch(f"hub:org/tiny@{commit}")
    hub.requests.clear()
    hub.repositories["org/tiny"].commits[commit]["behavior.yaml"] = b"other"
    assert fetch(f"hub:org/tiny@{commit}") == folder
    assert hub.requests == []
    assert files(folder) == files(saved)


@pytest.mark.parametrize("name", ["behavior.yaml", "README.md", "tensors.safetensors"])
def test_a_cached_commit_that_lacks_a_file_is_completed(commit: str, saved: Path, name: str) -> None:
    (fetch(f"hub:org/tiny@{commit}") / name).unlink()
    assert files(fetch(f"hub:org/tiny@{commit}")) == files(saved)


def test_a_branch_is_looked_up_each_time(hub: Hub, commit: str, make_bundle: Make, tmp_path: Path) -> None:
    first = fetch("hub:org/tiny")
    hub.requests.clear()
    assert fetch("hub:org/tiny") == first
    assert set(hub.requests) == {"GET /api/models/org/tiny/revision/main"}
    make_bundle(version="1.3.0").save(tmp_path / "next")
    push(tmp_path / "next", "org/tiny")
    assert Bundle.load(fetch("hub:org/tiny")).manifest.version == "1.3.0"
    assert Bundle.load(fetch("hub:org/tiny@v1.2.0")).manifest.version == "1.2.0"
    assert Bundle.load(first).manifest.version == "1.2.0"


def test_the_digest_reveals_a_moved_tag(hub: Hub, commit: str, saved: Path, make_bundle: Make, tmp_path: Path) -> None:
    pinned = f"hub:org/tiny@v1.2.0#sha256={manifest_digest(saved)}"
    fetch(pinned)
    make_bundle(version="1.3.0").save(tmp_path / "next")
    push(tmp_path / "next", "org/tiny")
    hub.repositories["org/tiny"].tags["v1.2.0"] = hub.repositories["org/tiny"].tags["v1.3.0"]
    refused(pinned, r"behavior\.yaml has sha256 [0-9a-f]{64}; it must be the one in the address")
    assert Bundle.load(fetch("hub:org/tiny@v1.2.0")).manifest.version == "1.3.0"
    refused(pinned, "it must be the one in the address")  # with the other commit in the cache


def test_other_content_under_a_pinned_commit_is_refused(
    hub: Hub, commit: str, saved: Path, make_bundle: Make, tmp_path: Path
) -> None:
    remote = hub.repositories["org/tiny"].commits[commit]
    make_bundle(description="Other words.").save(tmp_path / "other")
    remote["README.md"] = files(tmp_path / "other")["README.md"]
    refused(f"hub:org/tiny@{commit}", r"behaviors=hub:.*README\.md: sha256 is .*delete .* to fetch it again")
    refused(f"hub:org/tiny@{commit}#sha256={'0' * 64}", "sha256")


@pytest.mark.parametrize("other", ["f" * 40, "../../../../etc", ""])
def test_the_hub_must_keep_to_the_commit(hub: Hub, commit: str, other: str) -> None:
    hub.resolved[commit] = other
    refused(f"hub:org/tiny@{commit}", "the hub answers with commit")
    if other != "f" * 40:
        refused("hub:org/tiny", "the hub answers with commit")


def test_files_must_come_from_the_commit(hub: Hub, commit: str) -> None:
    pattern, answer = hub.routes[-1]

    def other(**request: Any) -> Reply:
        reply = answer(**request)
        return replace(reply, headers={**reply.headers, "X-Repo-Commit": "f" * 40})

    hub.routes[-1] = (pattern, other)
    refused("hub:org/tiny", "behaviors=hub:org/tiny: ")


def test_a_branch_that_moves_meanwhile_is_refused(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.repositories["org/tiny"]
    reply = hub.reply

    def moving(method: str, path: str, body: bytes) -> Reply:
        answer = reply(method, path, body)
        if path.endswith("/revision/main") and len(repository.commits) == 2:
            repository.commit(dict(repository.commits[commit]), "another")
        return answer

    monkeypatch.setattr(hub, "reply", moving)
    refused("hub:org/tiny", f"moved from commit {commit} to ")


@pytest.mark.parametrize("name", ["behavior.yaml", "tensors.safetensors"])
def test_sizes_are_checked_before_the_download(hub: Hub, commit: str, name: str) -> None:
    for size, found in ((1 << 40, "of 1099511627776"), (-1, "of -1"), (None, "of None"), ("big", "of big")):
        hub.announced[name] = size
        refused("hub:org/tiny", f"{name} is {found} bytes; a bundle needs it, of at most .* bytes")
    assert not [request for request in hub.requests if request.endswith(f"/{name}")]
    del hub.announced[name], hub.repositories["org/tiny"].commits[commit][name]
    refused("hub:org/tiny", f"{name} is missing; a bundle needs it")


def test_the_total_size_is_bounded(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(data) for data in hub.repositories["org/tiny"].commits[commit].values()]
    monkeypatch.setattr(contents, "MAX_BYTES", max(sizes) + 1)
    refused("hub:org/tiny", "a bundle needs it, of at most [0-9,]+ bytes")


@pytest.mark.parametrize("name", ["behavior.yaml", "tensors.safetensors"])
def test_an_interrupted_download_can_be_repeated(
    hub: Hub, commit: str, saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    hub.failing.add(name)
    refused("hub:org/tiny", "the hub's client failed with HfHubHTTPError: .*500")
    hub.failing.clear()
    hub.cut[name] = 10
    refused("hub:org/tiny", "the hub's client failed with")
    hub.cut.clear()
    assert files(fetch("hub:org/tiny")) == files(saved)


def test_a_changed_copy_in_the_cache_is_refused(hub: Hub, commit: str) -> None:
    folder = fetch("hub:org/tiny")
    (folder / "README.md").unlink()
    (folder / "README.md").write_text("changed")
    refused("hub:org/tiny", f"README.md: sha256 is .*; or delete {folder} to fetch it again")


def test_missing_repositories_and_revisions_are_refused(hub: Hub, commit: str) -> None:
    refused("hub:org/none", "no such repository, or it is not yours to read; correct the name")
    refused("hub:org/tiny@v9", "no such branch, tag or commit; correct")
    refused(f"hub:org/tiny@{'0' * 40}", "no such branch, tag or commit")
    hub.repositories["org/empty"] = Repository(private=False)
    hub.repositories["org/empty"].commit({}, "nothing")
    refused("hub:org/empty", r"behavior\.yaml is missing")


def test_nonsense_from_the_hub_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"", b"[]", b"null", b"<html>\n\x1b[31m", b'{"id": 1}', b'{"id": "a", "siblings": [1]}'):
        monkeypatch.setattr(hub, "reply", lambda *_, body=body: Reply(body=body))
        refused("hub:org/tiny", "behaviors=hub:org/tiny: the hub")


def test_no_hub_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with online(monkeypatch, cache):  # nobody listens there
        refused("hub:org/tiny", "the hub's client failed with ConnectError")


def test_a_cache_that_cannot_be_written_is_refused(commit: str, cache: Path) -> None:
    cache.write_text("a file")
    refused("hub:org/tiny", "the hub's client failed with .*Error")


@pytest.mark.parametrize(
    "address",
    [
        "hub:",
        "hub:tiny",
        "hub:a/b/c",
        "hub:../tiny",
        "hub:org/..",
        "hub:a--b/c",
        "hub:org/tiny@",
        "hub:org/tiny@../x",
        "hub:org/tiny@a b",
        "hub:org/tiny#sha256=12",
        f"hub:org/tiny#sha256={'F' * 64}",
        f"hub:org/tiny#md5={'0' * 64}",
        "hub:org/tiny\n",
        "hub:org/" + "x" * 97,
    ],
)
def test_malformed_addresses_are_refused(hub: Hub, address: str) -> None:
    refused(address, "not an address; it must be hub:org/repo, hub:org/repo@revision or")
    assert hub.requests == []


@pytest.mark.parametrize("address", ["https://host/a.zip", "http://host/a", f"https://host/a#sha256={'0' * 64}"])
def test_web_addresses_are_refused(hub: Hub, address: str) -> None:
    with pytest.raises(HybridError, match=r"no folder with behavior\.yaml.*or hub:ORG/REPO@REVISION"):
        resolve(address)


def test_offline_the_cache_is_served_without_requests(
    hub: Hub, commit: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("hub:org/tiny")
    fetch("hub:org/tiny@v1.2.0")
    hub.requests.clear()
    go_offline(monkeypatch)
    for address in ("hub:org/tiny", "hub:org/tiny@v1.2.0", f"hub:org/tiny@{commit}"):
        assert fetch(address) == folder
    for address in ("hub:org/tiny@v9", "hub:org/none", f"hub:org/tiny@{'0' * 40}"):
        refused(address, "HF_HUB_OFFLINE is set")
    refused(f"hub:org/tiny#sha256={'0' * 64}", "it must be the one in the address")
    (cache / "models--org--tiny/refs/main").write_text("../../../somewhere")
    refused("hub:org/tiny", "HF_HUB_OFFLINE is set")
    assert hub.requests == []


def test_a_bundle_is_pushed_and_pulled(hub: Hub, saved: Path, tmp_path: Path) -> None:
    (saved / "notes.txt").write_text("not part of it")
    pinned = push(saved, "org/tiny")
    there = hub.repositories["org/tiny"]
    assert there.messages == ["initial commit", "tiny 1.2.0"]
    assert there.tags == {"v1.2.0": there.branches["main"]}
    (saved / "notes.txt").unlink()
    assert there.commits[there.branches["main"]] == {**files(saved), ".gitattributes": b"*.safetensors filter=lfs\n"}
    assert pinned.startswith(f"hub:org/tiny@{there.branches['main']}#sha256=")

    folder = pull(pinned, tmp_path / "shelf")
    assert folder == tmp_path / "shelf/tiny/1.2.0"
    assert files(folder) == files(saved)
    assert Bundle.load(folder).identity == Bundle.load(saved).identity


def test_tensors_go_as_large_files(hub: Hub, saved: Path) -> None:
    push(saved, "org/tiny")
    assert list(hub.uploads.values()) == [(saved / "tensors.safetensors").read_bytes()]


def test_a_repository_is_public_by_default(hub: Hub, saved: Path) -> None:
    push(saved, "org/open")
    push(saved, "org/closed", private=True)
    assert not hub.repositories["org/open"].private
    assert hub.repositories["org/closed"].private


def test_versions_are_commits_of_one_repository(hub: Hub, saved: Path, make_bundle: Make, tmp_path: Path) -> None:
    first = push(saved, "org/tiny")
    make_bundle(version="1.3.0").save(tmp_path / "next")
    second = push(tmp_path / "next", "org/tiny")
    assert sorted(hub.repositories["org/tiny"].tags) == ["v1.2.0", "v1.3.0"]
    assert files(fetch(first)) == files(saved)
    assert files(fetch(second)) == files(tmp_path / "next")


def test_a_version_is_pushed_once(hub: Hub, saved: Path, make_bundle: Make, tmp_path: Path) -> None:
    push(saved, "org/tiny")
    before = dict(hub.repositories["org/tiny"].commits)
    hub.requests.clear()
    make_bundle(description="Other words.").save(tmp_path / "other")
    with pytest.raises(HybridError, match=r"hub:org/tiny: v1\.2\.0 exists already; a version is pushed only once"):
        push(tmp_path / "other", "org/tiny")
    assert hub.repositories["org/tiny"].commits == before
    assert not [request for request in hub.requests if "preupload" in request or "commit" in request]


def test_an_unsound_bundle_is_not_pushed(hub: Hub, saved: Path) -> None:
    (saved / "README.md").write_text("other")
    with pytest.raises(HybridError, match="the manifest states"):
        push(saved, "org/tiny")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo", ["", "tiny", "a/b/c", "../tiny", "a--b/c", "org/tiny@main", "org/tiny#x", "org/tiny\n"]
)
def test_malformed_repository_names_are_refused(hub: Hub, saved: Path, repo: str) -> None:
    with pytest.raises(HybridError, match="not a repository's name; it must be org/name"):
        push(saved, repo)
    assert hub.requests == []


def test_errors_are_one_line(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.routes = [route for route in hub.routes if "/tag/" not in route[0]]
    with pytest.raises(HybridError, match="hub:org/tiny: the hub's client failed with HfHubHTTPError") as caught:
        push(saved, "org/tiny")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with pytest.raises(HybridError, match="HF_HUB_OFFLINE is set"):
        push(saved, "org/tiny")
    assert hub.requests == []


def test_pulling_again_changes_nothing(hub: Hub, saved: Path, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    folder = pull(pinned, tmp_path / "shelf")
    (folder / "notes.txt").write_text("mine")
    assert pull(pinned, tmp_path / "shelf") == folder
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_existing_folder_is_not_replaced(hub: Hub, saved: Path, make_bundle: Make, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    shelf = tmp_path / "shelf"
    make_bundle(description="Other words.").save(shelf / "tiny/1.2.0")
    other = files(shelf / "tiny/1.2.0")
    with pytest.raises(HybridError, match="a bundle is there already"):
        pull(pinned, shelf)
    assert files(shelf / "tiny/1.2.0") == other
    (tmp_path / "desk/tiny/1.2.0").mkdir(parents=True)
    (tmp_path / "desk/tiny/1.2.0/thesis.tex").write_text("years of work")
    with pytest.raises(HybridError, match="exists and is not a bundle"):
        pull(pinned, tmp_path / "desk")


def test_a_damaged_copy_is_noticed(hub: Hub, saved: Path, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    folder = pull(pinned, tmp_path / "shelf")
    (folder / "README.md").write_text("other")
    with pytest.raises(HybridError, match=r"README\.md: sha256 is"):
        pull(pinned, tmp_path / "shelf")
