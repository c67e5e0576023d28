"""A real NDIF server for slow tests, brought up by `scripts/ndif-local` and always taken down."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "ndif-local"


@dataclass(frozen=True)
class LocalNdif:
    """A server in `home`, at `host`."""

    home: Path
    host: str

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What `ndif-local` says to these arguments."""
        return ndif_local(self.home, *arguments)

    def kill(self, part: str) -> None:
        """Kill a part at once."""
        assert self.command("kill", part).returncode == 0

    def processes(self, part: str) -> list[psutil.Process]:
        """Those whose command line names a part."""
        return [process for process in processes(self.home) if part in " ".join(process.cmdline())]

    def start(self) -> None:
        """Bring back what is missing."""
        started = self.command("start")
        assert started.returncode == 0, started.stderr


def processes(home: Path) -> list[psutil.Process]:
    """All that have the home in their command line, environment or working folder."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(home) in text for text in told):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def ndif_local(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script for a home, with the environment that the repository keeps for it."""
    environment = {"NDIF_LOCAL_VENV": str(ROOT / ".ndif" / "venv"), **os.environ}
    command = [sys.executable, str(SCRIPT), "--home", str(home), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def ndif(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNdif]:
    """A server that serves models by their folders' absolute paths."""
    former = signal.signal(signal.SIGTERM, _end)  # so that what is terminated takes the server down first
    home = tmp_path_factory.mktemp("ndif")
    started = ndif_local(home, "--port", "0", "start")
    try:
        assert started.returncode == 0, started.stderr
        yield LocalNdif(home, started.stdout.strip())
    finally:
        ndif_local(home, "stop")
        signal.signal(signal.SIGTERM, former)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
