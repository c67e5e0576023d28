"""What the hybrid does at each token: when it steers, with what, and what it takes (DESIGN, section 2)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

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
        gate: positions steered: where the models' choices differ, none, all, or a random share `gate_rate`.
        select: which candidate's token is taken: the one likeliest under the thinking model (`guardrail`), the
            only one (`fixed`), one whose coefficient a small network computes (`mlp`), or one at random.
        emit: what is emitted where the gate opens: a steered candidate's token, or the thinking model's own.
        category: which behavior vector joins the bias: the SAE's choice, a random one, or none.
        directions: the bundle's tensors, or Gaussian ones of the same norms.
        coefficients: multiples of (bias + vector) tried, in this order. Unused by `mlp`, whose network has a head for
            each category; where there is none, its coefficient is 1.
        windows: numbers of last positions steered, in this order; 0 means all.
        gate_rate: share of positions at which the `random` gate opens.
        seed: of the random draws and directions.

    Raises:
        HybridError: on values, or combinations of values, that mean nothing.
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
                known = ", ".join(get_args(choices))
                raise HybridError(f"{field} must be one of {known}; found {getattr(self, field)!r}; choose one")
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise HybridError(f"coefficients must be finite numbers; found {self.coefficients}; list at least one")
        if not self.windows or min(self.windows) < 0:
            raise HybridError(f"windows must be 0 (all) or more; found {self.windows}; list at least one")
        if self.gate == "random" and (self.gate_rate is None or not 0 <= self.gate_rate <= 1):
            raise HybridError(
                f"gate=random needs a gate_rate between 0 and 1; found {self.gate_rate}; "
                "use a bundle whose manifest states one"
            )
        if self.steers and self.select == "fixed" and len(self.coefficients) * len(self.windows) != 1:
            raise HybridError(
                f"select=fixed needs one coefficient and one window; found coefficients {self.coefficients}, "
                f"windows {self.windows}; give one of each"
            )
        if self.steers and self.select == "mlp" and len(self.windows) != 1:
            raise HybridError(f"select=mlp needs one window; found windows {self.windows}; give one, or another select")

    @property
    def steers(self) -> bool:
        """Whether any token may come from a steered candidate, so that steering tensors are needed."""
        return self.gate != "never" and self.emit == "candidate"

    @property
    def asks_network(self) -> bool:
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
