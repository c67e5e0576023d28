"""Errors that are the user's to correct, shown as one line without a stack trace."""

import re
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


# Control characters other than tab and line ends, halves of surrogate pairs, and noncharacters: neither HTML, XML nor
# UTF-8 can hold them all.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """For the terminal: control characters, which could move its cursor or recolour it, become U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def writable(text: str) -> str:
    """For HTML and XML: characters that they cannot hold become U+FFFD."""
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def clip(text: str, most: int) -> str:
    """The text cut to `most` characters, the last an ellipsis where something was cut."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
