"""Text from models and files of strangers, made safe to show."""

import re

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
