from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store.hub import pull, push
from lm_eval_hybrid.bundles.store.remote import fetch
from lm_eval_hybrid.common.errors import HybridError
from tests.bundles.loopback import Hub, online

Make = Callable[..., Bundle]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub, online(monkeypatch, tmp_path / "cache", hub.url):
        yield hub


@pytest.fixture
def saved(make_bundle: Make, tmp_path: Path) -> Path:
    make_bundle().save(tmp_path / "tiny" / "1.2.0")
    return tmp_path / "tiny" / "1.2.0"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_a_repository_is_public_unless_asked(hub: Hub, saved: Path) -> None:
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
    with pytest.raises(HybridError, match=r"hub:org/tiny@v1\.2\.0: a version is pushed once; found it there; make"):
        push(tmp_path / "other", "org/tiny")
    assert hub.repositories["org/tiny"].commits == before
    assert not [request for request in hub.requests if "preupload" in request or "commit" in request]


def test_an_unsound_bundle_is_not_pushed(hub: Hub, saved: Path) -> None:
    (saved / "README.md").write_text("other")
    with pytest.raises(HybridError, match="requires sha256"):
        push(saved, "org/tiny")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo", ["", "tiny", "a/b/c", "../tiny", "a--b/c", "org/tiny@main", "org/tiny#x", "org/tiny\n"]
)
def test_odd_names_are_refused(hub: Hub, saved: Path, repo: str) -> None:
    with pytest.raises(HybridError, match="must be org/name of a repository"):
        push(saved, repo)
    assert hub.requests == []


def test_what_goes_wrong_is_one_line(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.routes = [route for route in hub.routes if "/tag/" not in route[0]]
    with pytest.raises(HybridError, match="hub:org/tiny: the hub must do as asked; found HfHubHTTPError") as caught:
        push(saved, "org/tiny")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with pytest.raises(HybridError, match="found HF_HUB_OFFLINE set; unset it"):
        push(saved, "org/tiny")
    assert hub.requests == []


def test_pulling_again_changes_nothing(hub: Hub, saved: Path, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    folder = pull(pinned, tmp_path / "shelf")
    (folder / "notes.txt").write_text("mine")
    assert pull(pinned, tmp_path / "shelf") == folder
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_is_there_is_not_replaced(hub: Hub, saved: Path, make_bundle: Make, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    shelf = tmp_path / "shelf"
    make_bundle(description="Other words.").save(shelf / "tiny/1.2.0")
    other = files(shelf / "tiny/1.2.0")
    with pytest.raises(HybridError, match="found another of that name and version"):
        pull(pinned, shelf)
    assert files(shelf / "tiny/1.2.0") == other
    (tmp_path / "desk/tiny/1.2.0").mkdir(parents=True)
    (tmp_path / "desk/tiny/1.2.0/thesis.tex").write_text("years of work")
    with pytest.raises(HybridError, match="found something else there"):
        pull(pinned, tmp_path / "desk")


def test_a_damaged_copy_is_told(hub: Hub, saved: Path, tmp_path: Path) -> None:
    pinned = push(saved, "org/tiny")
    folder = pull(pinned, tmp_path / "shelf")
    (folder / "README.md").write_text("other")
    with pytest.raises(HybridError, match=r"README\.md: the manifest requires sha256"):
        pull(pinned, tmp_path / "shelf")
