"""The processes of a server: started, found in /proc, ended.

A part's first process leads a session of its own. All others descend from it, and inherit its environment, where
`MARK` names home and part, and its working folder, HOME/run/PART. Some programs write their title over the first
(Redis, Ray's dashboard), a program might leave the second; one of the two is enough.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ndif_local.home import Home

MARK = "NDIF_LOCAL_PART"


@dataclass(frozen=True)
class Process:
    """A process of a server's part. `title` is its command line, as the process last wrote it."""

    pid: int
    part: str
    leads: bool
    title: str

    def memory(self) -> int:
        """Bytes, shared ones divided by how many share them; 0 if it is gone."""
        try:
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def running(home: Home, parts: Iterable[str] | None = None) -> list[Process]:
    """The processes of this home (of these parts), whoever started them."""
    wanted = None if parts is None else set(parts)
    found = (_read(int(entry), home) for entry in os.listdir("/proc") if entry.isdecimal())
    return [process for process in found if process and (wanted is None or process.part in wanted)]


def start(home: Home, part: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a part in a session of its own, its output at the end of HOME/logs/PART.log."""
    folder = home.run / part
    folder.mkdir(exist_ok=True)
    with (home.logs / f"{part}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={**environment, MARK: f"{home.folder}:{part}"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(find: Callable[[], list[Process]], patience: float) -> int:
    """Ask all found to end, and after `patience` seconds kill what is left, until nothing is found; how many there
    were.

    A part in the middle of starting others may start one more after it was counted, hence the loop.
    """
    seen: set[int] = set()
    asked_until = time.monotonic() + patience
    asked: set[int] = set()
    while left := find():
        kill = time.monotonic() >= asked_until
        for process in left:
            if kill or process.pid not in asked:
                _signal(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        asked |= {process.pid for process in left}
        seen |= asked
        reap()
        time.sleep(0.05)
    return len(seen)


def kill(processes: Iterable[Process]) -> None:
    """Kill these at once."""
    for process in processes:
        _signal(process.pid, signal.SIGKILL)


def reap() -> None:
    """Let those of our own children go that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _read(pid: int, home: Home) -> Process | None:
    """The process, if it belongs to `home` and has not ended."""
    try:
        state, session = _state(pid)
        part = _part(pid, home)
        if part is None or state == "Z" or pid == os.getpid():
            return None
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it ended meanwhile, or is another user's
        return None
    return Process(pid, part, pid == session, title)


def _state(pid: int) -> tuple[str, int]:
    """A process's state and session. The fields come after its name, in parentheses, which may hold any character."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[3])


def _part(pid: int, home: Home) -> str | None:
    mark = os.fsencode(f"{MARK}={home.folder}:")
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(mark):
            return variable[len(mark) :].decode()
    folder = Path(os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)"))
    return folder.name if folder.parent == home.run else None
