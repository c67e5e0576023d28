"""What decides each token: when the base model is steered, with what, and which token is emitted; and the arms.

An arm is the bundle's own policy with one change, so that every control of an experiment runs through the same code.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lm_eval_hybrid.bundles.manifest import Gate, Select
from lm_eval_hybrid.common.errors import HybridError

Emit = Literal["candidate", "thinking"]
Category = Literal["sae", "random", "none"]
Directions = Literal["bundle", "random"]

_CHOICES = {"gate": Gate, "select": Select, "emit": Emit, "category": Category, "directions": Directions}


@dataclass(frozen=True)
class Policy:
    """One decoding policy. Two runs with equal policies over equal models emit equal tokens.

    Attributes:
        gate: where the gate opens: where the models' choices differ, nowhere, everywhere, or at a random share
            `gate_rate` of positions.
        select: which candidate's token is emitted: the one likeliest under the thinking model (`guardrail`), the only
            one (`fixed`), the one whose coefficient a small network computes (`mlp`), or a random one.
        emit: what is emitted where the gate opens: a steered candidate's token, or the thinking model's own.
        category: which behavior vector is added to the bias: the SAE's choice, a random one, or none.
        directions: the bundle's tensors, or Gaussian ones of the same norms.
        coefficients: multiples of (bias + vector), in the order of the candidates. Unused by `mlp`, whose network has a
            head for each category; without a category its coefficient is 1.
        windows: how many of the last positions are steered, in the order of the candidates; 0 means all.
        gate_rate: share of positions at which the `random` gate opens.
        seed: of the random draws and directions.

    Raises:
        HybridError: a value is invalid, or values contradict each other.
    """

    coefficients: tuple[float, ...]
    windows: tuple[int, ...]
    gate: Gate = "disagreement"
    select: Select = "guardrail"
    emit: Emit = "candidate"
    category: Category = "sae"
    directions: Directions = "bundle"
    gate_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", tuple(float(a) for a in self.coefficients))
        object.__setattr__(self, "windows", tuple(int(w) for w in self.windows))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in get_args(choices):
                raise HybridError(
                    f"{field}={getattr(self, field)!r} is unknown; choose one of {', '.join(get_args(choices))}"
                )
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise HybridError(f"coefficients={self.coefficients} are not one or more finite numbers; list at least one")
        if not self.windows or min(self.windows) < 0:
            raise HybridError(f"windows={self.windows} are not one or more numbers of positions; list some, 0 for all")
        if self.gate == "random" and (self.gate_rate is None or not 0 <= self.gate_rate <= 1):
            raise HybridError(
                f"gate_rate={self.gate_rate} is not between 0 and 1, which gate=random needs; use a bundle whose "
                "manifest states one"
            )
        if self.steers and self.select == "fixed" and len(self.coefficients) * len(self.windows) != 1:
            raise HybridError(
                f"select=fixed takes one candidate, but coefficients={self.coefficients} and windows={self.windows} "
                "make several; give one of each"
            )
        if self.steers and self.select == "mlp" and len(self.windows) != 1:
            raise HybridError(
                f"select=mlp takes one window, but windows={self.windows} are several; give one, or another select"
            )

    @property
    def steers(self) -> bool:
        """Whether any token may come from a steered candidate, so that steering tensors are needed."""
        return self.gate != "never" and self.emit == "candidate"

    @property
    def uses_network(self) -> bool:
        """Whether coefficients come from a bundle's network."""
        return self.steers and self.select == "mlp" and self.category != "none"

    @property
    def reads_base(self) -> bool:
        """Whether any decision depends on the base model."""
        return not (self.gate == "always" and self.emit == "thinking")

    @property
    def reads_thinking(self) -> bool:
        """Whether any decision depends on the thinking model."""
        if self.gate in ("never", "disagreement") or self.emit == "thinking":
            return self.gate != "never"
        return self.category == "sae" or self.select == "guardrail"


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
"""What each arm changes in the bundle's own policy. To add an arm, add a line."""

ARMS: tuple[str, ...] = tuple(_CHANGES)


def policy_for(arm: str, defaults: Policy) -> Policy:
    """`defaults`, the bundle's own policy, with the change that makes it this arm.

    Raises:
        HybridError: the arm is unknown, or the defaults lack what it needs.
    """
    if arm not in _CHANGES:
        raise HybridError(f"arm={arm!r} is unknown; choose one of {', '.join(ARMS)}")
    return replace(defaults, **_CHANGES[arm])


def leaves_alone(arm: str, field: str) -> bool:
    """Whether `arm` keeps the default policy's `field`. An unknown arm, of another version, counts as keeping all."""
    return field not in _CHANGES.get(arm, {})
