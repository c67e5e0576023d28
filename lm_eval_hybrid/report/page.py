"""What pages are made with: their templates, what their browser may run, and other people's words on them."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# Control characters but tab and line ends, which HTML has no way to write, and halves of characters beyond U+FFFF,
# which UTF-8 has none for.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def environment() -> ImmutableSandboxedEnvironment:
    """Of templates that escape whatever is not `Markup`, and fail on names they are not given."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )


def digest(text: str) -> str:
    """What a content security policy calls a style sheet or a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def writable(text: str) -> str:
    """Words with a replacement character for each that a page cannot hold."""
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)
