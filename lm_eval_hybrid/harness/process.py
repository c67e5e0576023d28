"""Process-wide set-up for a run: distributed launch on CPUs, and errors shown in one line."""

import os
import sys
from types import TracebackType

from lm_eval_hybrid.common.errors import HybridError, show_plainly

# The harness's own message when a task has no documents (lm_eval/api/task.py).
_NO_DOCUMENTS = "did not find any docs"


def processes() -> int:
    """How many processes the launcher (torchrun, accelerate) started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def enable_cpu_ranks() -> None:
    """Let accelerate form a process group without GPUs; by default it treats such processes as unrelated."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def install_excepthook() -> None:
    """Show uncaught user errors in one line, including the harness's error for a run without documents.

    Calling it again changes nothing.
    """
    show_plainly()
    previous = sys.excepthook
    if getattr(previous, "shows_empty_runs", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ValueError) and _NO_DOCUMENTS in str(error):
            needed = processes()
            each = "" if needed == 1 else f" for each of the {needed} processes"
            error = HybridError(
                f"the run has no documents (as with --limit 0); at least one is needed{each}; pass --limit {needed} "
                "or more, or leave --limit out"
            )
        previous(type(error), error, trace)

    hook.shows_hybrid_errors = hook.shows_empty_runs = True  # type: ignore[attr-defined]  # marks a function object
    sys.excepthook = hook
