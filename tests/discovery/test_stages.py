import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.stages import DONE_FILE, Stage, WorkFolder
from tests.shared_data import ROOT


def three(work: WorkFolder, version: int = 1, **changes: dict) -> list[Stage]:
    """A chain of stages; `changes` are settings by stage."""
    chain: list[Stage] = []
    for name in ("first", "second", "third"):
        settings = {"rate": 0.1, "layers": (1, 2)} | changes.get(name, {})
        chain.append(work.stage(name, version if name == "second" else 1, settings, *chain[-1:]))
    return chain


def same(before: list[Stage], after: list[Stage]) -> list[bool]:
    return [a.digest == b.digest and a.folder == b.folder for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [("first", [False, False, False]), ("second", [True, False, False]), ("third", [True, True, False])],
)
def test_a_setting_changes_its_stage_and_all_after_it(tmp_path: Path, changed: str, kept: list[bool]) -> None:
    work = WorkFolder(tmp_path)
    assert same(three(work), three(work, **{changed: {"rate": 0.2}})) == kept


def test_a_version_of_the_code_counts_as_a_setting(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    assert same(three(work), three(work, version=2)) == [True, False, False]


def test_neither_the_order_of_settings_nor_the_folder_changes_a_digest(tmp_path: Path) -> None:
    first, second = WorkFolder(tmp_path / "a"), WorkFolder(tmp_path / "b")
    here, there = first.stage("x", 1, {"a": 1, "b": [2]}), second.stage("x", 1, {"b": (2,), "a": 1})
    assert here.digest == there.digest and here.folder != there.folder
    assert here.folder == tmp_path / "a" / f"x-{here.digest[:12]}"


def test_the_order_of_inputs_changes_the_digest(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    one, two = work.stage("one", 1, {}), work.stage("two", 1, {})
    assert work.stage("x", 1, {}, one, two).digest != work.stage("x", 1, {}, two, one).digest
    assert work.stage("x", 1, {}, one).digest != work.stage("x", 1, {}).digest


def test_a_stage_runs_once(tmp_path: Path) -> None:
    stage, made = WorkFolder(tmp_path).stage("x", 1, {}), []
    assert (stage.started, stage.done) == (False, False)
    for _ in range(3):
        assert stage.run(made.append) == stage.folder
    assert made == [stage.folder] and (stage.started, stage.done) == (True, True)
    assert json.loads((stage.folder / DONE_FILE).read_bytes()) == {"stage": "x", "digest": stage.digest}
    assert [path.name for path in stage.folder.iterdir()] == [DONE_FILE]


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, HybridError])
def test_the_next_run_finds_the_files_of_an_interrupted_one(tmp_path: Path, end: type[BaseException]) -> None:
    stage = WorkFolder(tmp_path).stage("x", 1, {})

    def fail(folder: Path) -> None:
        (folder / "half").write_text("done")
        raise end("stopped")

    with pytest.raises(end, match="stopped"):
        stage.run(fail)
    assert (stage.started, stage.done) == (True, False)
    found = []
    stage.run(lambda folder: found.append((folder / "half").read_text()))
    assert found == ["done"] and stage.done


@contextmanager
def other_run(folder: Path) -> Iterator[subprocess.Popen]:
    """A second process that holds a folder's lock."""
    code = (
        "import sys; from pathlib import Path; from lm_eval_hybrid.discovery.stages import WorkFolder\n"
        "with WorkFolder(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_run_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work")
    with other_run(work.folder) as process:
        with pytest.raises(HybridError, match="another run is at work in it"), work.locked():
            raise AssertionError("two runs in one folder")
        with WorkFolder(tmp_path / "other").locked():
            pass
        process.kill()  # the lock of a killed process is free
        process.wait()
        with work.locked():
            pass
    with work.locked():
        pass


def test_a_failed_run_releases_the_lock(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    with pytest.raises(RuntimeError), work.locked():
        raise RuntimeError
    with work.locked():
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with (
            pytest.raises(HybridError, match="; name another --work folder"),
            WorkFolder(folder).locked(),
        ):
            pass


FULL = """
import resource, sys
from pathlib import Path
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.discovery.stages import WorkFolder
from lm_eval_hybrid.common.errors import HybridError

room = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
work = WorkFolder(Path(sys.argv[1]))
small = work.stage("small", 1, {})
large = work.stage("large", 1, {}, small)

def make(folder):
    write_file(folder / "part", b"x" * 500)
    write_file(folder / "whole", b"x" * 5000)

try:
    with work.locked():
        small.run(lambda folder: write_file(folder / "part", b"x" * 500))
        large.run(make)
except HybridError as error:
    print(error)
"""


def test_a_full_disk_is_a_one_line_error_and_finished_stages_stay(tmp_path: Path) -> None:
    def run(room: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path), str(room)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        ).stdout

    said = run(1000)
    assert "large cannot be written (File too large); free some space and run the same command again" in said
    assert said.count("\n") == 1
    (small,), (large,) = tmp_path.glob("small-*"), tmp_path.glob("large-*")
    assert sorted(path.name for path in small.iterdir()) == [DONE_FILE, "part"]
    assert [path.name for path in large.iterdir()] == ["part"]
    written = (small / "part").stat().st_mtime_ns
    assert run(10_000) == ""
    assert (large / DONE_FILE).is_file() and len((large / "whole").read_bytes()) == 5000
    assert (small / "part").stat().st_mtime_ns == written
