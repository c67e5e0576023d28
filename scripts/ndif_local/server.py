"""A server as a whole: started part by part, told, hurt on purpose, stopped.

`start` starts what is missing. A part that lost what it hangs on is started anew: the API's dispatcher neither
notices that Redis came back empty nor, for half a minute, that its Ray cluster is another one.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ndif_local import parts, processes
from ndif_local.home import Home, Ports, Problem
from ndif_local.install import install

PATIENCE = 120.0  # seconds for a part to answer on a slow machine
GRACE = 5.0  # seconds for a part to end when asked to


@dataclass(frozen=True)
class Server:
    """The server of one home. `say` is told what goes on, a line at a time."""

    home: Home
    say: Callable[[str], None]

    def start(self, settings: parts.Settings, models: Mapping[str, int]) -> None:
        """Bring up what is missing, then the models; returns once requests are answered.

        Raises:
            Problem: where a part does not come up, a port is taken, or the home's server has other ports.
        """
        install(self.home, self.say)
        self.home.make()
        parts.make_token(self.home)
        with self._alone():
            self._claim(settings.ports)
            environment = parts.environment(self.home, settings)
            missing = [part for part in parts.PARTS if not self._is_up(part, settings.ports)]
            if missing:
                if "api" not in missing and missing != ["store"]:
                    missing.append("api")
                self._bring_up(missing, settings.ports, environment)
            if models:
                self.say(f"deploying {', '.join(models)}")
                self._do("deployment", parts.deployment(self.home, dict(models)), environment)

    def stop(self) -> int:
        """End every process of this home and remove Ray's folder; how many processes there were."""
        with self._alone():
            ended = processes.end(lambda: processes.running(self.home), GRACE)
            self._clear_ray()
        return ended

    def kill(self, part: str) -> int:
        """Kill a part at once, or the processes that hold models; how many there were."""
        found = processes.running(self.home, ["ray" if part == "model" else part])
        if part == "model":
            found = [process for process in found if process.title.startswith(parts.MODEL)]
        if not found:
            raise Problem(
                f"a running part is required; nothing of {part} runs in {self.home.folder}; see `ndif-local status`"
            )
        processes.kill(found)
        return len(found)

    def is_up(self, ports: Ports) -> bool:
        """Whether every part is up."""
        return all(self._is_up(part, ports) for part in parts.PARTS)

    def table(self, ports: Ports) -> list[tuple[str, str, str, str]]:
        """A row for each part: its name, whether it is up, processes and megabytes."""
        rows = []
        for part in parts.PARTS:
            found = processes.running(self.home, [part])
            state = "up" if self._is_up(part, ports) else "not answering" if found else "down"
            rows.append((part, state, str(len(found)), f"{sum(process.memory() for process in found) / 1e6:.0f}"))
        return rows

    def _is_up(self, part: str, ports: Ports) -> bool:
        led = any(process.leads for process in processes.running(self.home, [part]))
        return led and parts.answers(part, ports)

    def _claim(self, ports: Ports) -> None:
        """Keep to the ports of what runs; where nothing does, make sure that nobody else listens on them."""
        noted = self.home.ports()
        if processes.running(self.home):
            if noted != ports:
                raise Problem(f"one server a home; that of {self.home.folder} has {noted}, not {ports}; stop it first")
            return
        if taken := ports.taken():
            raise Problem(f"ports {ports.api} to {ports.agent} must be free; {taken} are taken; choose another --port")
        self.home.note(ports)

    def _bring_up(self, missing: list[str], ports: Ports, environment: Mapping[str, str]) -> None:
        self.say(f"starting {', '.join(missing)} (logs in {self.home.logs})")
        processes.end(lambda: processes.running(self.home, missing), GRACE)
        if "ray" in missing:
            self._clear_ray()
            self.home.make()
        first = {part: self._launch(part, ports, environment) for part in missing if part != "api"}
        for part, launched in first.items():
            self._wait(part, launched, lambda part=part: parts.answers(part, ports))
        if "api" in missing:
            # An answer of the dispatcher's that was before would make the new one seem ready.
            parts.redis(ports, "DEL ray:connected")
            api = self._launch("api", ports, environment)
            self._do("controller", parts.controller(self.home), environment)
            self._wait("api", api, lambda: parts.status(ports.api, "/status") == 200)

    def _launch(self, part: str, ports: Ports, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return processes.start(self.home, part, parts.command(part, self.home, ports), environment)

    def _do(self, part: str, command: list[str], environment: Mapping[str, str]) -> None:
        """Run what ends by itself, and must end well."""
        if processes.start(self.home, part, command, environment).wait():
            raise Problem(f"{part} must end well; it failed: {self._last_words(part)}; see {self._log(part)}")

    def _wait(self, part: str, launched: subprocess.Popen[bytes], is_ready: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not is_ready():
            if launched.poll() is not None:
                raise Problem(f"{part} must keep running; it ended: {self._last_words(part)}; see {self._log(part)}")
            if time.monotonic() > until:
                raise Problem(f"{part} must answer in {PATIENCE:.0f} s; it does not; see {self._log(part)}")
            time.sleep(0.1)

    def _log(self, part: str) -> Path:
        return self.home.logs / f"{part}.log"

    def _last_words(self, part: str) -> str:
        lines = self._log(part).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _clear_ray(self) -> None:
        """Remove Ray's folder, but for its logs, which go to the other logs in place of the last ones."""
        logs = self.home.ray / "session_latest" / "logs"
        if logs.is_dir():
            shutil.rmtree(self.home.logs / "ray", ignore_errors=True)
            shutil.copytree(logs, self.home.logs / "ray", ignore_dangling_symlinks=True)
        shutil.rmtree(self.home.ray, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time, where there is a home at all."""
        if not self.home.folder.is_dir():
            yield
            return
        with (self.home.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
