"""A run without documents (`--limit 0`), told in one line."""

import os
import sys
from types import TracebackType

from lm_eval_hybrid.common.errors import HybridError, show_plainly

# The harness's own words, before any request reaches a model (lm_eval/api/task.py).
_NO_DOCUMENTS = "did not find any docs"


def show_empty_runs_plainly() -> None:
    """Have an uncaught complaint of the harness that there are no documents shown as a user's mistake. Idempotent."""
    show_plainly()
    former = sys.excepthook
    if getattr(former, "shows_empty_runs", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ValueError) and _NO_DOCUMENTS in str(error):
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            each = "" if processes == 1 else f" for each of its {processes} processes"
            error = HybridError(
                f"a run needs at least one document{each}; found none, as with --limit 0; pass --limit {processes} or "
                "more, or leave it out"
            )
        former(type(error), error, trace)

    hook.shows_hybrid_errors = hook.shows_empty_runs = True  # type: ignore[attr-defined]
    sys.excepthook = hook
