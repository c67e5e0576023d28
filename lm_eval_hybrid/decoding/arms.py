"""The arms of an experiment: names for the policies that results are compared across (DESIGN, section 2)."""

from dataclasses import replace
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import Policy

_CHANGES: dict[str, dict[str, Any]] = {
    "base": {"gate": "never"},
    "hybrid": {},
    "thinking": {"gate": "always", "emit": "thinking"},
    "takeover": {"emit": "thinking"},
    "bias-only": {"category": "none"},
    "random-category": {"category": "random"},
    "random-vectors": {"directions": "random"},
    "random-positions": {"gate": "random"},
    "random-select": {"select": "random"},
}

ARMS: tuple[str, ...] = tuple(_CHANGES)


def leaves_alone(arm: str, field: str) -> bool:
    """Whether `arm` takes the policy's `field` from its defaults. An unknown arm, of another version, leaves all."""
    return field not in _CHANGES.get(arm, {})


def policy_for(arm: str, defaults: Policy) -> Policy:
    """`defaults`, the bundle's own policy, with the one change that makes it this arm.

    Raises:
        HybridError: for an unknown arm, or defaults that lack what the arm needs.
    """
    if arm not in _CHANGES:
        raise HybridError(f"arm must be one of {', '.join(ARMS)}; found {arm!r}; choose one")
    return replace(defaults, **_CHANGES[arm])
