"""math_verify with a real time limit: in a process of its own, ended and started anew where it takes too long.

math_verify's own limit is a signal, which only a main thread receives, and which sympy's arithmetic on huge integers
does not heed. The process is spawned, not forked, because torch's threads may be alive here; it is started by the first
comparison, serves all threads of this process one by one, and ends with it.
"""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from functools import lru_cache

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.scoring.verifier import READY

SECONDS = 5.0  # an answer
_START_SECONDS = 120.0
_CHARACTERS = 1000  # longer answers are no expressions that anyone would compare
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lm_eval_hybrid.scoring.verifier import serve; serve(float(sys.argv[2]))"
)
log = logging.getLogger(__name__)


@lru_cache(maxsize=20_000)
def verified(answer: str, truth: str) -> bool:
    """Whether math_verify finds two expressions in LaTeX equal; False where it takes over `SECONDS` or cannot tell.

    Raises:
        HybridError: where math_verify cannot be started at all.
    """
    if max(len(answer), len(truth)) > _CHARACTERS:
        return False
    return _VERIFIER.same(answer, truth)


class Verifier:
    """One process that compares, and its restarts. Safe to share between threads and across forks."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, where one runs."""
        return None if self._process is None else self._process.pid

    def same(self, answer: str, truth: str) -> bool:
        """What math_verify says within the limit; False where it says nothing.

        Raises:
            HybridError: where no process can be started.
        """
        question = json.dumps([answer, truth])
        with self._lock:
            for _ in range(2):  # once more where something else ended the process
                reply, late = self._ask(question)
                if reply:
                    return bool(json.loads(reply))
                self._end()
                if late:
                    log.warning("math_verify took over %g s for %.60s; counted as unequal", self._seconds, answer)
                    break
            return False

    def close(self) -> None:
        """End the process. The next comparison starts another."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leave the process to the one that forked this one, whose it is."""
        self._process, self._lock = None, threading.Lock()

    def _ask(self, question: str) -> tuple[str, bool]:
        """The line that answers, empty where the process ended; and whether it was this that ended it, for its time."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        return _line(process, question, self._seconds)

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _SERVE, json.dumps(sys.path), str(self._seconds)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError as error:
            raise HybridError(f"comparing answers needs a process of its own; {error}; make room for one") from error
        said, _ = _line(process, None, _START_SECONDS)
        if said.strip() != READY:
            _kill(process)
            raise HybridError(
                "comparing answers needs math_verify in a process of its own; it ended at its start; "
                "see what `python -c 'import math_verify'` says, or pip install math-verify"
            )
        return process

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None


def _line(process: "subprocess.Popen[str]", question: str | None, seconds: float) -> tuple[str, bool]:
    """The process's next line after a question, empty where it ended; and whether it was ended here, for its time."""
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        if question is not None:
            process.stdin.write(question + "\n")
            process.stdin.flush()
        return process.stdout.readline(), late.is_set()
    except OSError:  # it ended before it read
        return "", late.is_set()
    finally:
        timer.cancel()


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:  # what it had not read is not written any more
            pass
    process.wait()


_VERIFIER = Verifier()
atexit.register(_VERIFIER.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_VERIFIER.forget)
