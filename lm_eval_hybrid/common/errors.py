"""Errors that are the user's to correct, shown as one line without a stack trace."""

import sys
from collections.abc import Callable
from types import TracebackType


class HybridError(ValueError):
    """A mistake of the user's. The message is one line: the fact, what was needed, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text as one line without control sequences: characters that cannot be printed are escaped."""
    shown = (c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text)
    return " ".join("".join(shown).split())


def brief(words: object) -> str:
    """Other programs' words as part of one line, at most 300 characters of them."""
    text = one_line(str(words)) or type(words).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def show_plainly() -> None:
    """Print an uncaught `HybridError` as one line on stderr instead of a stack trace; the exit status stays 1.

    Other exceptions go to the previous hook. Idempotent.
    """
    if not isinstance(sys.excepthook, _OneLineHook):
        sys.excepthook = _OneLineHook(sys.excepthook)


_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


class _OneLineHook:
    def __init__(self, previous: _Hook) -> None:
        self._previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, HybridError):
            print(f"lm-eval-hybrid: error: {error}", file=sys.stderr)
        else:
            self._previous(kind, error, trace)
