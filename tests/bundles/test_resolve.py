import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store import resolve as module
from lm_eval_hybrid.bundles.store.resolve import folders, listing, resolve
from lm_eval_hybrid.common.errors import HybridError

Put = Callable[..., Path]


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three folders of bundles and the working directory, all empty."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("LM_EVAL_HYBRID_BEHAVIORS", str(tmp_path / "own"))
    monkeypatch.setattr(module.platformdirs, "user_data_path", lambda name, appauthor: tmp_path / "data" / name)
    monkeypatch.setattr(module, "bundles_dir", lambda: tmp_path / "package")
    return {
        "own": tmp_path / "own",
        "data": tmp_path / "data/lm-eval-hybrid/behaviors",
        "package": tmp_path / "package",
    }


@pytest.fixture
def put(make_bundle: Callable[..., Bundle]) -> Put:
    """Saves a bundle under a folder of bundles and returns its own folder."""

    def put(folder: Path, name: str, version: str) -> Path:
        path = folder / name / version
        make_bundle(name=name, version=version).save(path)
        return path

    return put


def test_folders_are_searched_in_order(shelves: dict[str, Path]) -> None:
    assert folders() == tuple(shelves.values())


@pytest.mark.parametrize("shelf", ["own", "data", "package"])
def test_a_name_is_found_in_every_folder(shelves: dict[str, Path], put: Put, shelf: str) -> None:
    path = put(shelves[shelf], "tiny", "1.0.0")
    assert resolve("tiny") == resolve("tiny@1.0.0") == path


def test_earlier_folders_win(shelves: dict[str, Path], put: Put) -> None:
    put(shelves["package"], "tiny", "1.0.0")
    data = put(shelves["data"], "tiny", "1.0.0")
    assert resolve("tiny") == data
    own = put(shelves["own"], "tiny", "1.0.0")
    assert resolve("tiny") == own
    assert [listed.path for listed in listing()] == [own]


def test_a_name_means_its_highest_version_in_any_folder(shelves: dict[str, Path], put: Put) -> None:
    old = put(shelves["own"], "tiny", "1.9.0")
    new = put(shelves["package"], "tiny", "1.10.0")
    put(shelves["own"], "tiny", "1.10.0-rc.1")
    assert resolve("tiny") == new
    assert resolve("tiny@1.9.0") == old


def test_paths_to_a_version_and_to_its_parent(shelves: dict[str, Path], put: Put, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "tiny", "1.9.0")
    path = put(tmp_path / "elsewhere", "tiny", "1.10.0")
    assert resolve(str(path)) == path
    assert resolve(str(path.parent)) == path
    assert resolve("../elsewhere/tiny").resolve() == path


def test_only_a_bundle_in_the_working_directory_shadows_a_name(
    shelves: dict[str, Path], put: Put, tmp_path: Path
) -> None:
    named = put(shelves["package"], "tiny", "1.0.0")
    (tmp_path / "cwd" / "tiny").mkdir()
    assert resolve("tiny") == named
    here = put(tmp_path / "cwd", "tiny", "0.1.0")
    assert resolve("tiny").resolve() == here


def test_an_unknown_name_lists_the_known_ones(shelves: dict[str, Path], put: Put) -> None:
    put(shelves["own"], "tiny", "1.0.0")
    put(shelves["package"], "embedded", "1.0.0")
    with pytest.raises(HybridError, match=r"^behaviors=embeded: .*there are embedded, tiny; did you mean embedded\?$"):
        resolve("embeded")
    with pytest.raises(HybridError, match="there are embedded, tiny; name one of these, or give a path"):
        resolve("qwen")


def test_an_unknown_name_without_any_bundles(shelves: dict[str, Path]) -> None:
    with pytest.raises(HybridError, match="there are no bundles"):
        resolve("tiny")


@pytest.mark.parametrize("version", ["2.0.0", "1.2", "latest", "", "../1.0.0"])
def test_an_unknown_version_lists_the_known_ones(shelves: dict[str, Path], put: Put, version: str) -> None:
    put(shelves["own"], "tiny", "1.0.0")
    put(shelves["own"], "tiny", "1.1.0")
    expected = "no folder with" if "/" in version else r"there are 1\.0\.0, 1\.1\.0; use one of these"
    with pytest.raises(HybridError, match=expected):
        resolve(f"tiny@{version}")


@pytest.mark.parametrize(
    "spec", ["", "./nowhere", "~nobody/tiny", "/nowhere/tiny", "..", ".", "a\0b", "@1.0.0", "tiny@"]
)
def test_odd_specs_are_user_errors(shelves: dict[str, Path], spec: str) -> None:
    with pytest.raises(HybridError) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)


def test_a_version_prefix_is_enough(shelves: dict[str, Path], put: Put) -> None:
    for version in ("1.2.0", "1.2.1", "1.10.0", "2.0.0-rc.1"):
        put(shelves["own"], "tiny", version)
    names = {spec: resolve(spec).name for spec in ("tiny", "tiny@1", "tiny@1.2", "tiny@1.2.0", "tiny@2")}
    assert list(names.values()) == ["1.10.0", "1.10.0", "1.2.1", "1.2.0", "2.0.0-rc.1"]


def test_the_resolved_folder_is_logged(shelves: dict[str, Path], put: Put, caplog: pytest.LogCaptureFixture) -> None:
    path = put(shelves["own"], "tiny", "1.0.0")
    with caplog.at_level("INFO"):
        resolve("tiny@1")
    assert f"behaviors=tiny@1 is the bundle in {path}" in caplog.text


def test_a_folder_must_be_named_as_its_manifest(shelves: dict[str, Path], put: Put) -> None:
    put(shelves["own"], "tiny", "1.0.0").rename(shelves["own"] / "tiny" / "3.0.0")
    with pytest.raises(HybridError, match=r"its manifest says tiny@1\.0\.0; .*rename the folder"):
        resolve("tiny")


def test_bundles_are_listed_by_name_and_descending_version(shelves: dict[str, Path], put: Put) -> None:
    for version in ("1.9.0", "1.10.0"):
        put(shelves["own"], "tiny", version)
    put(shelves["package"], "another", "1.0.0")
    names = [(listed.manifest.name, listed.manifest.version) for listed in listing()]
    assert names == [("another", "1.0.0"), ("tiny", "1.10.0"), ("tiny", "1.9.0")]


def test_unsound_bundles_are_left_out_of_the_list_with_a_warning(
    shelves: dict[str, Path], put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    sound = put(shelves["own"], "tiny", "1.0.0")
    (put(shelves["own"], "tiny", "2.0.0") / "behavior.yaml").write_text("name: [")
    (shelves["own"] / "tiny" / ".1.0.0.abcd.new").mkdir()
    (shelves["own"] / "notes.txt").write_text("not a bundle")
    assert [listed.path for listed in listing()] == [sound]
    assert "2.0.0" in caplog.text


def test_listing_and_resolving_import_nothing_heavy(put: Put, tmp_path: Path) -> None:
    put(tmp_path, "tiny", "1.0.0")
    code = (
        "import sys\n"
        "from lm_eval_hybrid.bundles.store.resolve import listing, resolve\n"
        "assert any(listed.manifest.name == 'tiny' for listed in listing()); resolve('tiny')\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'nnsight', 'lm_eval', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    # -S leaves out the site hooks of other packages; the search path is handed over instead.
    environment = {**os.environ, "LM_EVAL_HYBRID_BEHAVIORS": str(tmp_path)}
    program = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-S", "-c", program + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
