"""Our own model arguments, told apart from those of the harness's HFLM.

Numbers are separated by colons, `coefficients=0.5:1:2`, since commas separate arguments; names are in brackets,
`only=[check,restate]`, where the command line leaves commas alone. A real list, from Python, JSON or a YAML config,
does as well. (In a YAML config write the list: YAML itself reads `8:0` as a number in base 60.)
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import LEVELS
from lm_eval_hybrid.bundles.manifest import SteeringSpec
from lm_eval_hybrid.bundles.store.resolve import resolve
from lm_eval_hybrid.bundles.suite import POLICY, Choice, Suite, compose
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.arms import ARMS, policy_for
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.models.ndif.client import Server

Numbers = str | int | float | Sequence[float]
Names = str | Sequence[str]

THINKING_PROMPTS = ("auto", "raw", "chat")
BACKENDS = ("local", "remote")

# Arguments of HFLM that a hybrid would have to ignore, and what to do instead.
_UNFIT = {
    "pretrained": "name the models with base= and thinking=, or the bundle with behaviors=",
    "truncation": "shorten the prompt: a hybrid never cuts it",
    "think_end_token": "leave it out: tasks *_hybrid score what follows the thought",
    "enable_thinking": "set it in chat_template_args",
    "tp_plan": "use parallelize=True: nnsight runs no model in tensor-parallel parts",
    "mixed_precision_dtype": "set dtype=, which holds for both models",
    "softmax_dtype": "leave it out: log-probabilities are float32",
}


@dataclass(frozen=True)
class HybridArguments:
    """Which system to run. What is None is as the bundle says.

    Attributes:
        behaviors: the bundle, as a path, NAME, NAME@VERSION or an address; or several, as [FIRST,SECOND].
        only, without: keys of behaviors, as [KEY,KEY]: those that are used, or those that are not.
        scale: factors of behaviors' vectors, as [KEY*FACTOR], or a mapping from Python or a config.
        strict: how well the models must match the bundle's: `exact`, `architecture` or `width`.
        base, thinking: models (hub id or path) to use in place of the bundle's.
        arm: one of `lm_eval_hybrid.decoding.arms.ARMS`.
        coefficients, windows, gate, select, seed: see `lm_eval_hybrid.decoding.policy.Policy`.
        thinking_prompt: the thinking model reads the context as it is (raw), as a user turn of its chat template
            (chat), or as the bundle says (auto).
        base_device, thinking_device: where each of them goes, as `cuda:1` or `cpu`, over HFLM's `device`.
        base_backend, thinking_backend: whether a model is in this process (local) or on an NDIF server (remote).
        ndif_host: the server; None: that of NDIF_HOST, or of nnsight's configuration. Its key is NDIF_API_KEY's.
        ndif_timeout, ndif_patience: see `lm_eval_hybrid.models.ndif.client.Server`.

    Raises:
        HybridError: an unknown arm, thinking_prompt or strict, or a seed that is no whole number.
    """

    behaviors: Names | Path = "embedded"
    only: Names | None = None
    without: Names | None = None
    scale: Names | Mapping[str, float] | None = None
    strict: str = "width"
    base: str | Path | None = None
    thinking: str | Path | None = None
    arm: str = "hybrid"
    coefficients: Numbers | None = None
    windows: Numbers | None = None
    gate: str | None = None
    select: str | None = None
    thinking_prompt: str = "auto"
    base_device: str | None = None
    thinking_device: str | None = None
    base_backend: str = "local"
    thinking_backend: str = "local"
    ndif_host: str | None = None
    ndif_timeout: float | None = None
    ndif_patience: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("arm", ARMS),
            ("thinking_prompt", THINKING_PROMPTS),
            ("strict", LEVELS),
            ("base_backend", BACKENDS),
            ("thinking_backend", BACKENDS),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise HybridError(f"{name} must be one of {known}; found {getattr(self, name)!r}; choose one")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise HybridError(f"seed must be a whole number; found {self.seed!r}; give one, such as seed=0")

    @classmethod
    def split(cls, given: dict[str, Any]) -> tuple["HybridArguments", dict[str, Any]]:
        """(our arguments, the rest, which is HFLM's).

        Raises:
            HybridError: an argument of HFLM that a hybrid cannot honour, or a misspelt one of ours.
        """
        ours = {field.name for field in fields(cls)}
        known = ours | inspect.signature(HFLM.__init__).parameters.keys()
        for name, value in given.items():
            if name in _UNFIT and value is not None:
                raise HybridError(f"model hybrid takes no argument {name}; found {name}={value}; {_UNFIT[name]}")
            if name == "backend" and value not in (None, "default", "causal"):
                raise HybridError(f"model hybrid needs causal models; found backend={value}; leave it out")
            near = [] if name in known else difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
            if near:
                raise HybridError(f"model hybrid knows no argument {name}; found {name}={value}; write {near[0]}=")
        chosen = {name: value for name, value in given.items() if name in ours and value is not None}
        return cls(**chosen), {name: value for name, value in given.items() if name not in ours | _UNFIT.keys()}

    def server(self) -> Server:
        """Where remote models are.

        Raises:
            HybridError: for an address or times that are none.
        """
        return Server.choose(self.ndif_host, self.ndif_timeout, self.ndif_patience)

    def suite(self) -> Suite:
        """The bundles, loaded and put together.

        Raises:
            HybridError: for a bundle that cannot be found or is unsound, and where they do not go together.
        """
        bundles = [Bundle.load(resolve(name)) for name in _names("behaviors", self.behaviors)]
        if not bundles:
            raise HybridError("behaviors must name a bundle; found none; write behaviors=NAME")
        choice = Choice(
            only=None if self.only is None else tuple(_names("only", self.only)),
            without=tuple(_names("without", self.without or ())),
            scales=_scales(self.scale or {}),
        )
        return compose(bundles, choice, settled=[name for name in POLICY if getattr(self, name) is not None])

    def policy(self, steering: SteeringSpec) -> Policy:
        """The policy of this arm: the bundle's, with what the arguments say instead.

        Raises:
            HybridError: values without meaning, or a gate or select that contradicts the arm.
        """
        defaults = Policy(
            coefficients=steering.coefficients,
            windows=steering.windows,
            gate=steering.gate,
            select=steering.select,
            gate_rate=steering.gate_rate,
            seed=self.seed,
        )
        changes: dict[str, Any] = {}
        if self.coefficients is not None:
            changes["coefficients"] = tuple(_numbers("coefficients", self.coefficients))
        if self.windows is not None:
            windows = _numbers("windows", self.windows)
            if not all(window.is_integer() for window in windows):
                raise HybridError(f"windows must be whole numbers; found {self.windows}; list numbers of positions")
            changes["windows"] = tuple(int(window) for window in windows)
        changes |= {name: value for name in ("gate", "select") if (value := getattr(self, name)) is not None}
        policy = policy_for(self.arm, replace(defaults, **changes))
        for name in ("gate", "select"):
            if name in changes and changes[name] != getattr(policy, name):
                raise HybridError(
                    f"arm={self.arm} sets {name}={getattr(policy, name)}; found {name}={changes[name]}; leave one out"
                )
        return policy


def _numbers(name: str, given: Numbers) -> list[float]:
    parts = given.split(":") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"{name} must be numbers separated by colons; found {given!r}; write for example {name}=1:2"
        ) from error


def _names(name: str, given: Names | Path) -> list[str]:
    if isinstance(given, (str, Path)):
        text = str(given).strip()
        # A folder may have a comma in its name, a list is in brackets.
        listed = text.startswith("[") and text.endswith("]")
        return [part.strip() for part in text[1:-1].split(",") if part.strip()] if listed else [text]
    if isinstance(given, Sequence) and all(isinstance(part, (str, Path)) for part in given):
        return [str(part) for part in given]
    raise HybridError(f"{name} must be names; found {given!r}; write for example {name}=[first,second]")


def _scales(given: Names | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(given, Mapping):
        pairs = [text.rpartition("*") for text in _names("scale", given)]
        given = {name.strip(): factor for name, _, factor in pairs}
    try:
        return {str(name): float(factor) for name, factor in given.items()}
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"scale must give behaviors factors; found {given!r}; write for example scale=[check*0.5,restate*2]"
        ) from error
