"""The frame of every page: templates that escape, the content security policy, style sheets, scripts.

A page is one HTML file that loads nothing. Its browser may run and apply only the page's own script and style sheet,
which the policy names by digest. Words of models and data sets are escaped wherever they stand, and none is inside the
script. page.html.j2 is the frame, page.css the theme.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lm_eval_hybrid.common.errors import clip, writable
from lm_eval_hybrid.report import cells, charts

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

_FOLDER = Path(__file__).parent


def render(template: str, style: str, script: str, filters: Mapping[str, Any], **fields: Any) -> str:
    """A page from a template beside this file. The template gets `fields` and, besides its own, these filters."""
    environment = _environment()
    environment.filters |= filters
    page = environment.get_template(template).render(style=Markup(style), script=Markup(script), **fields)
    return writable(page)


def sources(names: Iterable[str]) -> str:
    """The contents of style sheets or scripts beside this file, one after the other."""
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def digest(text: str) -> str:
    """The name of a style sheet or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> "ImmutableSandboxedEnvironment":
    """For templates that escape whatever is not `Markup`, and fail on names that they are not given."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "digest": digest,
        "chip": charts.chip,
        "clip": clip,
        "count": lambda value: f"{value:,}",
        "percent": lambda value: cells.signed(cells.percent(value)),
        "signed": cells.signed,
    }
    return environment
