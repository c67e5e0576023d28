"""Renders prompt templates (jinja2) with untrusted text quoted.

The filter `quoted` makes a value one line, a JSON string or object, so that it cannot break out of its slot, imitate
our instructions, or contain a chat template's markers.
"""

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def rendered(template: Path, **values: Any) -> str:
    """The text of a template with these values."""
    return _environment(template.parent).get_template(template.name).render(values)


def quoted(value: Any) -> str:
    """JSON in one line, without control characters and without the `<` that opens a chat template's markers."""
    text = json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return re.sub(r"<(?![\s=\d])", r"\\u003c", text)


@functools.cache
def _environment(folder: Path) -> "ImmutableSandboxedEnvironment":
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = quoted
    return environment
