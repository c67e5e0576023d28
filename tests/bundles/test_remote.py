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
from lm_eval_hybrid.bundles.store import download, remote
from lm_eval_hybrid.bundles.store.archive import pack
from lm_eval_hybrid.bundles.store.cache import cache_folder
from lm_eval_hybrid.bundles.store.hub import push
from lm_eval_hybrid.bundles.store.remote import fetch, fetched
from lm_eval_hybrid.bundles.store.resolve import resolve
from lm_eval_hybrid.common.errors import HybridError
from tests.bundles.loopback import CERTIFICATE, Files, Hub, Reply, online

Make = Callable[..., Bundle]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub, online(monkeypatch, tmp_path / "cache", hub.url):
        yield hub


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with Files() as server, online(monkeypatch, tmp_path / "cache"):
        yield server


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


@pytest.fixture
def address(server: Files, saved: Path, tmp_path: Path) -> str:
    """The address of the bundle on the https server."""
    digest = pack(saved, tmp_path / "tiny.zip")
    server.files["/tiny.zip"] = Reply(body=(tmp_path / "tiny.zip").read_bytes())
    return f"{server.url}/tiny.zip#sha256={digest}"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "behavior.yaml").read_bytes()).hexdigest()


def refused(address: str, message: str) -> None:
    """Fetching ends in one line, and leaves no bundle and no scratch folder."""
    before = kept()
    with pytest.raises(HybridError, match=message) as caught:
        fetch(address)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("; ") >= 2
    assert kept() == before


def kept() -> list[Path]:
    """The bundles in the cache, and whatever else is beside them."""
    return sorted(path for kind in ("hub/*", "https") for path in cache_folder().glob(f"{kind}/*"))


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_addresses_are_told_from_paths_and_names() -> None:
    assert all(map(remote.is_address, ("hub:org/repo", "https://host/a.zip", "http://host/a.zip")))
    assert not any(map(remote.is_address, ("hub", "tiny", "./https:", "hub/x", "tiny@1.0.0")))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/x/lm-eval-hybrid/bundles")
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_folder() == Path("/l/lm-eval-hybrid/bundles")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library/Caches/lm-eval-hybrid/bundles"


def test_nothing_heavy_is_imported_before_something_is_fetched() -> None:
    heavy = "huggingface_hub", "httpx2", "ssl", "http.client", "urllib.request", "numpy", "torch"
    code = f"import lm_eval_hybrid.bundles.store.hub, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# hub:


@pytest.mark.parametrize("revision", ["", "@main", "@v1.2.0", "@COMMIT"])
def test_a_bundle_comes_from_the_hub(commit: str, saved: Path, revision: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = fetched("hub:org/tiny" + revision.replace("COMMIT", commit))
    assert found.folder == cache_folder() / "hub/org--tiny" / commit
    assert files(found.folder) == files(saved)
    assert not any(path.is_symlink() for path in found.folder.iterdir())
    assert found.pinned == f"hub:org/tiny@{commit}#sha256={manifest_digest(saved)}"
    assert found.pinned in caplog.text
    assert fetched(found.pinned) == found
    assert resolve(found.pinned) == found.folder


def test_only_what_the_manifest_lists_is_taken(hub: Hub, commit: str, saved: Path) -> None:
    hub.repositories["org/tiny"].commits[commit]["run.sh"] = b"rm -rf /"
    assert files(fetch("hub:org/tiny")) == files(saved)
    assert not [request for request in hub.requests if "run.sh" in request or ".gitattributes" in request]


def test_a_commit_that_is_here_is_served_without_asking(hub: Hub, commit: str, saved: Path) -> None:
    folder = fetch(f"hub:org/tiny@{commit}")
    hub.requests.clear()
    hub.repositories["org/tiny"].commits[commit]["behavior.yaml"] = b"other"
    assert fetch(f"hub:org/tiny@{commit}") == folder
    assert hub.requests == []
    assert files(folder) == files(saved)


def test_a_branch_is_asked_for_each_time(hub: Hub, commit: str, make_bundle: Make, tmp_path: Path) -> None:
    first = fetch("hub:org/tiny")
    hub.requests.clear()
    assert fetch("hub:org/tiny") == first
    assert hub.requests == ["GET /api/models/org/tiny/revision/main"]
    make_bundle(version="1.3.0").save(tmp_path / "next")
    push(tmp_path / "next", "org/tiny")
    assert Bundle.load(fetch("hub:org/tiny")).manifest.version == "1.3.0"
    assert Bundle.load(fetch("hub:org/tiny@v1.2.0")).manifest.version == "1.2.0"
    assert Bundle.load(first).manifest.version == "1.2.0"


def test_a_tag_that_was_moved_is_noticed_by_the_digest(
    hub: Hub, commit: str, saved: Path, make_bundle: Make, tmp_path: Path
) -> None:
    pinned = f"hub:org/tiny@v1.2.0#sha256={manifest_digest(saved)}"
    fetch(pinned)
    make_bundle(version="1.3.0").save(tmp_path / "next")
    push(tmp_path / "next", "org/tiny")
    hub.repositories["org/tiny"].tags["v1.2.0"] = hub.repositories["org/tiny"].tags["v1.3.0"]
    refused(pinned, r"behavior\.yaml must have this sha256; found [0-9a-f]{64}; ask")
    assert Bundle.load(fetch("hub:org/tiny@v1.2.0")).manifest.version == "1.3.0"
    with pytest.raises(HybridError, match="must have this sha256"):
        fetch(pinned)  # now that the other commit is in the cache


def test_other_content_under_a_pinned_commit_is_refused(
    hub: Hub, commit: str, saved: Path, make_bundle: Make, tmp_path: Path
) -> None:
    there = hub.repositories["org/tiny"].commits[commit]
    make_bundle(description="Other words.").save(tmp_path / "other")
    there |= files(tmp_path / "other")
    refused(f"hub:org/tiny@{commit}#sha256={manifest_digest(saved)}", "must have this sha256")
    there["behavior.yaml"] = (saved / "behavior.yaml").read_bytes()
    refused(f"hub:org/tiny@{commit}#sha256={manifest_digest(saved)}", r"README\.md: the manifest requires sha256")
    refused(f"hub:org/tiny@{commit}", r"behaviors=hub:.*README\.md: the manifest requires sha256")


def test_the_hub_must_keep_to_the_commit(hub: Hub, commit: str) -> None:
    hub.resolved[commit] = "f" * 40
    refused(f"hub:org/tiny@{commit}", f"the commit that was asked for; found {'f' * 40}")
    hub.resolved[commit] = "../../../../etc"
    refused("hub:org/tiny", "the commit that was asked for; found ../../")


def test_files_must_come_from_the_commit(hub: Hub, commit: str) -> None:
    pattern, answer = hub.routes[-1]

    def other(**asked: Any) -> Reply:
        reply = answer(**asked)
        return replace(reply, headers={**reply.headers, "X-Repo-Commit": "f" * 40})

    hub.routes[-1] = (pattern, other)
    refused("hub:org/tiny", f"must come from commit {commit}; found {'f' * 40}")


@pytest.mark.parametrize("name", ["behavior.yaml", "tensors.safetensors"])
def test_sizes_are_checked_before_anything_is_downloaded(hub: Hub, commit: str, name: str) -> None:
    for size, found in ((1 << 40, "1099511627776"), (-1, "-1"), (None, "one of unknown size"), ("big", "big")):
        hub.announced[name] = size
        refused("hub:org/tiny", f"must hold {name}, of at most .* bytes; found {found}")
    hub.announced[name] = 3
    refused("hub:org/tiny", "at most 3 bytes; found more")
    del hub.announced[name], hub.repositories["org/tiny"].commits[commit][name]
    refused("hub:org/tiny", f"must hold {name}, of at most .* bytes; found none")


def test_all_files_together_are_bounded(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(data) for data in hub.repositories["org/tiny"].commits[commit].values()]
    monkeypatch.setattr(contents, "MAX_BYTES", max(sizes) + 1)
    refused("hub:org/tiny", "of at most [0-9,]+ bytes; found")


@pytest.mark.parametrize("name", ["behavior.yaml", "tensors.safetensors"])
def test_an_interrupted_download_leaves_nothing(
    hub: Hub, commit: str, saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    hub.failing.add(name)
    refused("hub:org/tiny", "the hub must do as asked; found HfHubHTTPError: .*500")
    hub.failing.clear()
    hub.cut[name] = 10
    refused("hub:org/tiny", "the hub must do as asked; found")
    hub.cut.clear()
    assert files(fetch("hub:org/tiny")) == files(saved)


def test_a_keyboard_interrupt_leaves_nothing(commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        assert list(folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(contents, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("hub:org/tiny")
    assert kept() == []


def test_another_process_may_be_faster(commit: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, times = contents.read, []

    def meanwhile(folder: Path) -> contents.Contents:
        times.append(folder)
        if len(times) == 1:
            first.append(fetch("hub:org/tiny"))
            (first[0] / "mark").touch()
        return read(folder)

    first: list[Path] = []
    monkeypatch.setattr(contents, "read", meanwhile)
    assert fetch("hub:org/tiny") == first[0]
    assert (first[0] / "mark").exists()
    assert len(kept()) == 2  # the bundle and refs


def test_a_copy_that_was_changed_is_refused(commit: str, hub: Hub) -> None:
    folder = fetch("hub:org/tiny")
    (folder / "README.md").write_text("changed")
    refused("hub:org/tiny", f"must be as it was fetched; found otherwise: .*; delete {folder} to have it fetched again")


def test_what_is_not_on_the_hub_is_said_in_one_line(hub: Hub, commit: str) -> None:
    refused("hub:org/none", "must be a repository that you may use; found none; mend its name")
    refused("hub:org/tiny@v9", "must name a branch, tag or commit; found none such; mend")
    refused(f"hub:org/tiny@{'0' * 40}", "must name a branch, tag or commit")
    hub.repositories["org/empty"] = type(hub.repositories["org/tiny"])(private=False)
    hub.repositories["org/empty"].commit({}, "nothing")
    refused("hub:org/empty", r"must hold behavior\.yaml")


def test_a_hub_that_answers_nonsense_is_refused_in_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"", b"[]", b"null", b"<html>\n\x1b[31m", b'{"id": 1}', b'{"id": "a", "siblings": [1]}'):
        monkeypatch.setattr(hub, "reply", lambda *_, body=body: Reply(body=body))
        refused("hub:org/tiny", "the hub must")


def test_no_hub_at_all_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with online(monkeypatch, tmp_path / "cache"):  # nobody listens there
        refused("hub:org/tiny", "the hub must do as asked; found ConnectError")


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
def test_odd_hub_addresses_are_refused(hub: Hub, address: str) -> None:
    refused(address, "must be hub:org/repo, hub:org/repo@revision or")
    assert hub.requests == []


def test_offline_is_what_it_was_last_and_asks_nobody(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch("hub:org/tiny")
    fetch("hub:org/tiny@v1.2.0")
    hub.requests.clear()
    go_offline(monkeypatch)
    for address in ("hub:org/tiny", "hub:org/tiny@v1.2.0", f"hub:org/tiny@{commit}"):
        assert fetch(address) == folder
    for address in ("hub:org/tiny@v9", "hub:org/none", f"hub:org/tiny@{'0' * 40}"):
        refused(address, "must be in the cache while HF_HUB_OFFLINE is set; found nothing of it in")
    refused(f"hub:org/tiny#sha256={'0' * 64}", "must have this sha256")
    (cache_folder() / "hub/org--tiny/refs/main").write_text("../../../somewhere")
    refused("hub:org/tiny", "must be in the cache")
    assert hub.requests == []


# https:


def test_a_bundle_comes_by_https(server: Files, address: str, saved: Path) -> None:
    found = fetched(address)
    assert found.folder == cache_folder() / "https" / address[-64:]
    assert found.pinned == address
    assert files(found.folder) == files(saved)
    assert fetched(address) == found
    assert resolve(address) == found.folder
    assert server.requests == ["GET /tiny.zip"]


def test_offline_asks_no_server(server: Files, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    refused(address, "must be in the cache while HF_HUB_OFFLINE is set")
    assert server.requests == []


def test_offline_serves_what_is_here(server: Files, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(address)
    server.requests.clear()
    go_offline(monkeypatch)
    assert fetch(address) == folder
    assert server.requests == []


def test_the_digest_is_required(server: Files, address: str) -> None:
    plain = address.partition("#")[0]
    refused(plain, "must be https://.*; found no digest; `lm-eval-hybrid behaviors pack` prints")
    refused(f"{plain}#sha256=12", "found another form")
    refused(f"{plain}#sha256={'G' * 64}", "found another form")
    refused(address.replace("https:", "http:"), "found plain http")
    refused("https:", "found no digest")
    assert server.requests == []


def test_the_digest_is_checked_before_anything_is_read(
    server: Files, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipfile.ZipFile", None)
    server.files["/tiny.zip"] = Reply(body=b"something else")
    refused(address, f"the archive must have sha256 {address[-64:]}; found [0-9a-f]{{64}}; ask")


def test_an_archive_that_is_no_bundle_is_refused(server: Files) -> None:
    server.files["/a.zip"] = Reply(body=b"thesis")
    digest = hashlib.sha256(b"thesis").hexdigest()
    refused(f"{server.url}/a.zip#sha256={digest}", r"^https://127\.0\.0\.1:\d+/a\.zip: must be a whole zip archive")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Files, address: str, saved: Path, status: int) -> None:
    server.files["/moved.zip"] = Reply(status, headers={"Location": "/tiny.zip"})
    assert files(fetch(address.replace("/tiny.zip", "/moved.zip"))) == files(saved)


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "http://127.0.0.1:9/",
        "ftp://127.0.0.1/",
        "data:,x",
        "\\",
    ],
)
def test_redirects_to_other_than_https_are_refused(server: Files, address: str, location: str) -> None:
    server.files["/tiny.zip"] = Reply(302, headers={"Location": location})
    refused(address, "must be https; found a redirect to this|must send the file")


def test_redirects_have_an_end(server: Files, address: str) -> None:
    server.files["/tiny.zip"] = Reply(302, headers={"Location": "/tiny.zip"})
    refused(address, "at most 5 redirects; found more")
    assert len(server.requests) == 6


def test_what_the_server_says_instead_is_told(server: Files, address: str) -> None:
    for reply, message in (
        (Reply(404), "found status 404 Not Found"),
        (Reply(500), "found status 500"),
        (Reply(302), "found status 302"),
        (Reply(body=b"x" * 100, cut=10), "found the connection cut after 10 of 100 bytes"),
        (Reply(headers={"Content-Length": str(1 << 40)}), "must have at most .* bytes; found 1,099,511,627,776"),
        (Reply(body=b"zz", headers={"Transfer-Encoding": "chunked"}), "must send the file|must have sha256"),
    ):
        server.files["/tiny.zip"] = reply
        refused(address, message)


def test_a_body_without_end_is_not_read_to_it(server: Files, tmp_path: Path) -> None:
    server.files["/a"] = Reply(body=b"x" * 100_000, headers={"Content-Length": ""})
    with pytest.raises(HybridError, match="must have at most 1,000 bytes; found more"):
        download.download(f"{server.url}/a", tmp_path / "a", 1000)


def test_a_server_that_nobody_vouches_for_is_refused(
    server: Files, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "none.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    refused(address, "must send the file; found .*certificate verify failed")
    assert server.requests == []


def test_no_server_at_all_is_said_in_one_line(server: Files) -> None:
    refused(f"https://127.0.0.1:9/a.zip#sha256={'0' * 64}", "must send the file; found .*refused")
    refused(f"https://127.0.0.1:x/a.zip#sha256={'0' * 64}", "must send the file; found")
    refused(f"https://[/a.zip#sha256={'0' * 64}", "must send the file; found")


def test_a_cache_that_cannot_be_written_is_said_in_one_line(
    server: Files, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "tiny.zip"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "tiny.zip"))
    refused(address, "must take what is fetched; found .*; make room there")
