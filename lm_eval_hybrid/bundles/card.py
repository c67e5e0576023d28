"""The README.md of a bundle, rendered from its manifest so that the two cannot disagree.

The template is card.md.j2 beside this file. The hub searches by the YAML at its top.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lm_eval_hybrid.bundles.manifest import Manifest, Result

if TYPE_CHECKING:
    from jinja2 import Template

TAGS = ("behavior-bundle", "steering-vectors", "sparse-autoencoder", "reasoning")
_TEMPLATE = Path(__file__).with_name("card.md.j2")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def render(manifest: Manifest) -> str:
    """The bundle's card as Markdown; depends on nothing but the manifest without its `files`."""
    arms = list(dict.fromkeys(arm for result in manifest.results for arm in result.scores))[:64]
    return _template().render(m=manifest, arms=arms, front_matter=_front_matter(manifest))


def gap(result: Result) -> str:
    """Gap recovered with its interval, in percent: `71% [62, 80]`, or `undefined`."""
    if result.gap_recovered is None:
        return "undefined"
    if result.gap_interval is None:
        return f"{result.gap_recovered:.0%} [no interval]"
    low, high = result.gap_interval
    return f"{result.gap_recovered:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def _front_matter(manifest: Manifest) -> str:
    models = [model.id for model in (manifest.base, manifest.thinking) if _HUB_ID.fullmatch(model.id)]
    fields = {
        "library_name": "lm-eval-hybrid",
        "license": manifest.license.lower(),
        **({"base_model": models} if models else {}),
        "tags": list(TAGS),
    }
    return yaml.safe_dump(fields, sort_keys=False)


@functools.cache
def _template() -> Template:
    # The template is ours, but the words that go into it are not: a sandbox costs nothing.
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(autoescape=False, keep_trailing_newline=True)
    environment.filters |= {
        "cell": _cell,
        "gap": gap,
        "number": lambda value: f"{value:g}",
        "window": lambda positions: str(positions) if positions else "all",
        "percent": lambda share: f"{share:.1%}" if isinstance(share, float) else "-",
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _cell(value: object) -> str:
    # One line without bars, which would end the cell; a dash for what is unknown or undefined.
    text = " ".join(str(value).split()) if value is not None else ""
    return text.replace("\\", "\\\\").replace("|", "\\|") or "-"
