"""The command, killed at random moments or run in two processes, ends in the same bundle."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.bundle import Bundle
from tests.discovery.test_command import DESCRIPTION, OUT, WORK, write_recipe
from tests.discovery.test_pipeline import bytes_of, write_problems
from tests.tiny_system import write_system

KILLS, TRACES = 10, 140  # three shards
log = logging.getLogger(__name__)
pytestmark = pytest.mark.slow


def command(folder: Path, out: str = OUT, work: str = WORK, processes: int = 1) -> subprocess.Popen:
    launched = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return subprocess.Popen(
        [
            sys.executable, *(launched if processes > 1 else ()), "-m", "lm_eval_hybrid", "discover",
            "--recipe", DESCRIPTION, "--out", out, "--work", work,
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said[-2000:]
    return said


def work_of(folder: Path) -> dict[str, bytes]:
    """The files of the stages, without partly written ones, which have other names."""
    return {name: data for name, data in bytes_of(folder).items() if not Path(name).name.startswith(".")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_system(folder / "system")
    write_problems(folder / "problems.jsonl", TRACES + 3)
    write_recipe(folder, traces={"count": TRACES}, sae={"steps": 200, "sizes": [3, 4]}, vectors={"epochs": 3})
    return folder


def at_work(process: subprocess.Popen) -> None:
    """Wait until a run has started its stages: most of the time of a small run is its start."""
    assert process.stderr is not None
    while not any(sign in (line := process.stderr.readline()) for sign in (b"starting in", b"resuming in", b"already")):
        assert line, "the run ended"


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> tuple[str, float]:
    """The identity of an undisturbed run's bundle, and the seconds that its stages take."""
    process = command(place)
    at_work(process)
    begun = time.monotonic()
    finished(process)
    return Bundle.load(place / OUT).identity, time.monotonic() - begun


def test_runs_killed_at_any_moment_end_in_the_same_bundle(place: Path, undisturbed: tuple[str, float]) -> None:
    identity, seconds = undisturbed
    moments, killed, folders = random.Random(0), 0, 1
    while killed < KILLS:
        out, work = f"killed-{folders}/mine/0.1.0", f"killed-{folders}.discover"
        if (place / out).exists():  # killed just after it was done: a further run would be refused
            same(place, out, work, identity)
            folders += 1
            continue
        process = command(place, out, work)
        at_work(process)
        try:
            process.communicate(timeout=seconds * moments.uniform(0.0, 0.3))
            assert process.returncode == 0
            same(place, out, work, identity)
            folders += 1  # and start over
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            log.info("killed with %s", [path.name for path in sorted((place / work).iterdir())])
    if not (place / out).exists():
        finished(command(place, out, work))
    same(place, out, work, identity)


def same(place: Path, out: str, work: str, identity: str) -> None:
    assert Bundle.load(place / out).identity == identity
    assert work_of(place / work) == work_of(place / WORK)


def test_two_processes_end_in_the_same_bundle(place: Path, undisturbed: tuple[str, float]) -> None:
    finished(command(place, "two/mine/0.1.0", "two.discover", processes=2))
    same(place, "two/mine/0.1.0", "two.discover", undisturbed[0])


def test_a_second_run_in_the_same_folder_is_refused(place: Path) -> None:
    first = command(place, "first/mine/0.1.0", "shared.discover")
    lock = place / "shared.discover" / ".lock"
    while not lock.exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = command(place, "second/mine/0.1.0", "shared.discover")
    said = second.communicate()[1].decode()
    assert second.returncode == 2 and "another run is at work in it" in said.splitlines()[-1]
    finished(first)
    assert (place / "first/mine/0.1.0").exists() and not (place / "second").exists()
