"""`scripts/ndif-local`: a server comes up, is hurt, comes back, and goes without a trace."""

from pathlib import Path

import pytest

from tests.remote.conftest import LocalNdif, ndif_local, processes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--port", "12000", "start"), "20000"),
        (("--deploy", "model=0", "start"), "MODEL=N"),
        (("kill", "disk"), "disk"),
        (("kill", "redis"), "nothing of redis runs"),
        (("fly",), "fly"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    refused = ndif_local(tmp_path, *arguments)
    assert refused.returncode != 0
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr


def test_there_is_nothing_to_stop(tmp_path: Path) -> None:
    stopped = ndif_local(tmp_path / "none", "stop")
    assert (stopped.returncode, "nothing was running" in stopped.stderr) == (0, True)


@pytest.mark.slow
def test_started_twice_is_started_once(ndif: LocalNdif) -> None:
    before = processes(ndif.home)
    again = ndif.command("start")
    assert again.stdout.strip() == ndif.host
    assert {process.pid for process in before} == {process.pid for process in processes(ndif.home)}
    assert ndif.command("status").returncode == 0


@pytest.mark.slow
def test_nothing_is_left(tmp_path: Path) -> None:
    started = ndif_local(tmp_path, "--port", "0", "start")
    assert started.returncode == 0, started.stderr
    assert len(processes(tmp_path)) > 5
    assert ndif_local(tmp_path, "kill", "ray").returncode == 0
    assert ndif_local(tmp_path, "stop").returncode == 0
    assert processes(tmp_path) == []
    assert "nothing was running" in ndif_local(tmp_path, "stop").stderr
