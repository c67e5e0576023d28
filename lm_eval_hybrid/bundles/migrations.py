"""Manifests of older schema versions, made into ones of the latest: a function a step."""

from collections.abc import Callable
from typing import Any

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.common.errors import HybridError

LATEST = 2


def migrate(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """The fields of a manifest as the latest schema has them; what they say is neither changed nor checked.

    Raises:
        HybridError: for a schema version that is none, or newer than this.
    """
    version = fields.get("schema_version", 1)  # the first schema had it as a default
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise HybridError(f"{what}: schema_version must be a number from 1 to {LATEST}; found {version!r}; mend it")
    if version > LATEST:
        raise HybridError(
            f"{what}: schema_version must be at most {LATEST} for this lm-eval-hybrid; found {version}; "
            f"pip install {_release(fields.get('written_by'))}"
        )
    for former in range(version, LATEST):
        fields = _STEPS[former](fields)
    return fields


def _release(writer: object) -> str:
    """What to install for a bundle that this release wrote."""
    known = isinstance(writer, str) and versions.is_version(writer)
    return f"'lm-eval-hybrid>={writer}'" if known else "--upgrade lm-eval-hybrid"


def _second(fields: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 lets be open what only the models could tell, and says what wrote a bundle and what it supersedes."""
    return {**fields, "schema_version": 2}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _second}
