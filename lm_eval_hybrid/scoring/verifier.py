"""math_verify with a real time limit: a process of its own, killed and restarted where a comparison takes too long.

math_verify's own limit is a signal, which only a main thread receives and which sympy's arithmetic on huge integers
ignores. The process is spawned rather than forked, because torch's threads may be running here. It starts with the
first comparison, serves all threads of this process one at a time, and ends with it. Both ends of the pipe are in this
module: one line of JSON in, one line out. `serve` runs in that process, which loads neither torch nor transformers.
"""

import atexit
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any, TextIO

from lm_eval_hybrid.common.errors import HybridError

SECONDS = 5.0  # for one comparison
_START_SECONDS = 120.0
_MAX_CHARACTERS = 1000  # longer answers are no expressions
_MAX_BYTES = 2 << 30  # of address space; sympy takes a tenth
_ZERO = 1e-60  # what an expression that is zero may evaluate to
_READY = "ready"
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lm_eval_hybrid.scoring.verifier import serve; serve(float(sys.argv[2]))"
)
log = logging.getLogger(__name__)


@lru_cache(maxsize=20_000)
def verified(answer: str, truth: str) -> bool:
    """Whether math_verify finds two LaTeX expressions equal; False where it takes over `SECONDS` or cannot tell.

    Raises:
        HybridError: math_verify cannot be started at all.
    """
    if max(len(answer), len(truth)) > _MAX_CHARACTERS:
        return False
    return _PROCESS.same(answer, truth)


class MathVerifyProcess:
    """One process that compares expressions, restarted as needed. Safe to share between threads and across forks."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()

    def same(self, answer: str, truth: str) -> bool:
        """math_verify's verdict; False where none comes within the limit.

        Raises:
            HybridError: no process can be started.
        """
        request = json.dumps([answer, truth])
        with self._lock:
            for _ in range(2):  # again where something else killed the process
                self._process = self._process or self._start()
                reply, late = _exchange(self._process, request, self._seconds)
                if reply:
                    return bool(json.loads(reply))
                self.close()
                if late:
                    log.warning("math_verify took over %g s for %.60s; counted as unequal", self._seconds, answer)
                    break
            return False

    def close(self) -> None:
        """End the process. The next comparison starts another."""
        with self._lock:
            if self._process is not None:
                _kill(self._process)
                self._process = None

    def forget(self) -> None:
        """After a fork, leave the process to the parent, which owns it."""
        self._process, self._lock = None, threading.RLock()

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _SERVE, json.dumps(sys.path), str(self._seconds)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError as error:
            raise HybridError(
                f"cannot start the process that compares answers: {error}; free memory or process slots"
            ) from error
        reply, _ = _exchange(process, None, _START_SECONDS)
        if reply.strip() != _READY:
            _kill(process)
            raise HybridError(
                "the process that compares answers ended at its start; it needs math_verify; see what "
                "`python -c 'import math_verify'` says, or pip install math-verify"
            )
        return process


def _exchange(process: "subprocess.Popen[str]", request: str | None, seconds: float) -> tuple[str, bool]:
    """Send a request, if any, and read one line, empty where the process ended; and whether the time limit ended it."""
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        if request is not None:
            process.stdin.write(request + "\n")
            process.stdin.flush()
        return process.stdout.readline(), late.is_set()
    except OSError:  # it ended before it read the request
        return "", late.is_set()
    finally:
        timer.cancel()


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:  # unread input cannot be flushed
            pass
    process.wait()


_PROCESS = MathVerifyProcess()
atexit.register(_PROCESS.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forget)


def serve(seconds: float) -> None:
    """Answer `[answer, truth]` lines with true or false until the input ends, after one line that says `ready`.

    Args:
        seconds: the parent's limit for one comparison. After twice that the process ends itself, in case the parent is
            gone.
    """
    replies = _claim_output()
    _limit_memory()
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    end_after: Any = getattr(signal, "alarm", lambda seconds: None)  # by the kernel, whatever runs; not on Windows
    print(_READY, file=replies, flush=True)
    for line in sys.stdin:
        end_after(math.ceil(2 * seconds))
        try:
            found, gold = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
            same = verify(gold, found, timeout_seconds=None, allow_set_relation_comp=True) and not _differ(gold, found)
        except (Exception, RecursionError, MemoryError):  # whatever sympy raises
            same = False
        end_after(0)
        print(json.dumps(bool(same)), file=replies, flush=True)


def _differ(gold: list[Any], found: list[Any]) -> bool:
    """Whether two numbers differ by more than rounding, which math_verify overlooks below 1e-15 (1e-6 for decimals)."""
    pair = [parsed[0] for parsed in (gold, found)]
    if not all(getattr(each, "is_number", False) and not each.is_infinite for each in pair):
        return False
    truth, value = (each.evalf(30) for each in pair)
    tolerance = 2e-6 if any(atom.is_Float for each in pair for atom in each.atoms()) else 1e-12
    return bool(abs(value - truth) > tolerance * abs(truth) + _ZERO)


def _claim_output() -> TextIO:
    """The stream for replies. Whatever a library prints goes to the null device instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return replies


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MAX_BYTES if hard == resource.RLIM_INFINITY else min(_MAX_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
