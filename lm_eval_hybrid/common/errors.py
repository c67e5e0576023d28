"""User mistakes, and how they are shown: one line, no stack trace."""

import sys
from types import TracebackType


class HybridError(ValueError):
    """A user's mistake. The message is one line: what was required; what was found; what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Words as one line that no terminal obeys: what cannot be printed is written as an escape."""
    shown = (c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text)
    return " ".join("".join(shown).split())


def show_plainly() -> None:
    """Print an uncaught `HybridError` as one line on stderr instead of a stack trace; exit status stays 1.

    Everything else goes to the hook that was there before. Calling it again changes nothing.
    """
    former = sys.excepthook
    if getattr(former, "shows_hybrid_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, HybridError):
            print(f"lm-eval-hybrid: error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            former(kind, error, trace)

    hook.shows_hybrid_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
