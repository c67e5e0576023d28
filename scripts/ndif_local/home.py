"""Where a server keeps what it writes, and the ports that follow from its API's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).resolve().parent / "plugin"

DEFAULT_PORT = 8421
SPAN = 7  # ports that a server takes, the API's first
# Below what Linux hands out of its own accord, so that a free port stays free until it is used.
FREE_PORTS = range(20000, 32000, 10)

# The longest address of a Unix socket, without its closing zero, and the longest that Ray puts under its folder.
SOCKET_ADDRESS = 107
RAY_SOCKET = "/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"


class Problem(Exception):
    """What is shown as one line: what was required; what was found; what to do."""


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1, counted from the API's."""

    api: int

    @property
    def redis(self) -> int:
        return self.api + 1

    @property
    def store(self) -> int:
        return self.api + 2

    @property
    def ray(self) -> int:
        return self.api + 3

    @property
    def ray_client(self) -> int:
        return self.api + 4

    @property
    def dashboard(self) -> int:
        return self.api + 5

    @property
    def agent(self) -> int:
        return self.api + 6

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    def taken(self) -> list[int]:
        """Those that something listens on."""
        return [port for port in range(self.api, self.api + SPAN) if not _is_free(port)]


@dataclass(frozen=True)
class Home:
    """A server's folder: `logs`, `run` and, unless `venv` lies elsewhere, the environment that it runs in."""

    folder: Path
    venv: Path

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        """Working folders of the parts, by which they are told."""
        return self.folder / "run"

    @property
    def token(self) -> Path:
        """The secret of this server's Ray cluster."""
        return self.folder / "ray-token"

    @property
    def ray(self) -> Path:
        """Ray's folder: in the home, or where its sockets' addresses would grow too long, a short one beside others."""
        here = self.folder / "ray"
        if len(os.fsencode(here)) + len(RAY_SOCKET) <= SOCKET_ADDRESS:
            return here
        return Path("/tmp") / f"ndif-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]}"

    def make(self) -> None:
        """Make the folders; Ray's readable by nobody else, for its default place is one that all share."""
        for folder in (self.folder, self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        self.ray.mkdir(mode=0o700, exist_ok=True)
        if self.ray.is_symlink() or self.ray.stat().st_uid != os.getuid():
            raise Problem(f"Ray's folder must be this user's; {self.ray} is not; remove it or choose another --home")

    def ports(self) -> Ports | None:
        """Those of the server that was last started here."""
        try:
            return Ports(json.loads((self.folder / "server.json").read_text())["port"])
        except FileNotFoundError:
            return None

    def note(self, ports: Ports) -> None:
        """Remember the ports for the commands to come."""
        (self.folder / "server.json").write_text(json.dumps({"port": ports.api}))


def free_ports() -> Ports:
    """Ports that nothing listens on, from a random place: servers started at the same moment do not meet."""
    for first in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if not Ports(first).taken():
            return Ports(first)
    raise Problem(f"{SPAN} free ports in a row are required; none found in {FREE_PORTS}; stop what holds them")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing can be listened on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
