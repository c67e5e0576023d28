"""The sandbox in which cases run, and the invariants that it checks."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.commands.main import main as command_line
from lm_eval_hybrid.common.errors import HybridError

Action = Callable[[], object]

SECONDS = 10  # of the processor: others may be using it
PATIENCE = 60  # seconds on the clock after which a case hangs
BYTES = 2 << 30
READ = 1 << 26  # bytes of a file that are compared, besides its size: a sparse one has a terabyte


def check_line(text: str) -> None:
    """The text is one line, without control characters."""
    assert text.isprintable(), f"more than a line, or control characters: {text[:300]!r}"


@dataclass
class Sandbox:
    """A sandbox. Cases read from `root`/inside and may write only to `root`/out."""

    root: Path
    cases: int = 0
    slowest: float = 0.0
    largest: int = 0

    @property
    def inside(self) -> Path:
        return self.root / "inside"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def mark(self) -> Path:
        """The path that hostile files would create if they were executed."""
        return self.root / "ran"

    def renew(self) -> None:
        for folder in (self.inside, self.out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def attempt(self, *actions: Action) -> None:
        """Run the actions of one case, and check the invariants."""
        self.cases += 1
        before = surroundings(self.root)
        for action in actions:
            begun = time.process_time()
            forget_peak()
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            try:
                action()
            except HybridError as error:
                check_line(str(error))
                assert not any(self.out.iterdir()), "a refused case left something"
            finally:
                faulthandler.cancel_dump_traceback_later()
            taken, peak = time.process_time() - begun, peak_bytes()
            self.slowest, self.largest = max(self.slowest, taken), max(self.largest, peak)
            assert taken < SECONDS, f"{taken:.1f} s"
            assert peak < BYTES, f"{peak:,} bytes"
        assert not any(self.out.rglob(".*")), "temporary files were left"
        assert surroundings(self.root) == before, "something was written outside"


def surroundings(root: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `root` outside of `out`: kinds, and digests of files and links."""
    found = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders.remove("out")
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            kind = os.lstat(path).st_mode
            data = b""
            if stat.S_ISREG(kind):
                with open(path, "rb") as file:
                    data = file.read(READ) + str(os.path.getsize(path)).encode()
            elif stat.S_ISLNK(kind):
                data = os.readlink(path).encode()
            found[path] = (kind, hashlib.sha256(data).digest())
    return found


def forget_peak() -> None:
    """Reset the measured peak of memory, if the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def command(*arguments: object) -> None:
    """Run `lm-eval-hybrid behaviors`: no stack trace, no control characters, one line for an error."""
    with io.TextIOWrapper(io.BytesIO(), "utf-8") as output, io.StringIO() as errors:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = command_line(["behaviors", *map(str, arguments)])
        output.flush()
        printed = output.buffer.getvalue().decode()  # type: ignore[attr-defined]
        for line in printed.split("\n"):
            check_line(line)
        if arguments[0] == "validate":  # a line a fault, and nothing that looks like another one
            assert all(line.startswith(str(arguments[1])) for line in printed.splitlines())
        if status == 2:
            check_line(errors.getvalue().removesuffix("\n"))
