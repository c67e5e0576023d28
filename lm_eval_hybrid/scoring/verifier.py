"""The process in which math_verify compares: started by `verifying`, one line of JSON in, one line out.

It imports nothing of this package, and of others only math_verify, so that it starts in about a second.
"""

import json
import logging
import os
import sys
from typing import Any, TextIO

BYTES = 2 << 30  # of address space; sympy takes a tenth of it
READY = "ready"


def serve(seconds: float) -> None:
    """Answers `[answer, truth]` with true or false until the input ends. First it says `READY`.

    Args:
        seconds: after which an answer is given up by whoever asked. A comparison that goes on for twice as long ends
            the process, which then nobody is left to end.
    """
    replies = _own_output()
    _bound_memory()
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        _end_after(2 * seconds)
        try:
            found, gold = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
            same = verify(gold, found, timeout_seconds=None, allow_set_relation_comp=True)
        except (Exception, RecursionError, MemoryError):  # of whatever sympy made of it
            same = False
        _end_after(0)
        print(json.dumps(bool(same)), file=replies, flush=True)


def _own_output() -> TextIO:
    """What replies go to. Whatever a library prints goes nowhere instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    return replies


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = BYTES if most == resource.RLIM_INFINITY else min(BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _end_after(seconds: float) -> None:
    """Let the kernel end this process then, whatever it computes; 0: never."""
    import signal

    timer: Any = getattr(signal, "setitimer", None)
    if timer is not None:  # None: Windows
        timer(signal.ITIMER_REAL, seconds)
