"""A real NDIF server for slow tests, brought up by `scripts/ndif-local` and always taken down."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

    def start(self) -> None:
        """Bring back what is missing."""
        started = self.command("start")
        assert started.returncode == 0, started.stderr


def ndif_local(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script for a home, with the environment that the repository keeps for it."""
    environment = {"NDIF_LOCAL_VENV": str(ROOT / ".ndif" / "venv"), **os.environ}
    command = [sys.executable, str(SCRIPT), "--home", str(home), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def ndif(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNdif]:
    """A server that serves models by their folders' absolute paths."""
    home = tmp_path_factory.mktemp("ndif")
    started = ndif_local(home, "--port", "0", "start")
    try:
        assert started.returncode == 0, started.stderr
        yield LocalNdif(home, started.stdout.strip())
    finally:
        ndif_local(home, "stop")
