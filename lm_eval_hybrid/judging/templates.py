"""Prompts from jinja2 templates into which foreign text goes as data.

The filter `quoted` makes a value one line, a JSON string or object, so it cannot end its place in the prompt, pass for
a line of ours, or hold a chat template's markers.
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
    """JSON in one line that neither a terminal nor a tokenizer obeys: `<` opens a chat template's markers."""
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
