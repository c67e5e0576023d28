"""The model arguments of `hybrid`, and their separation from those of the harness's HFLM.

On the command line commas separate arguments, so numbers are separated by colons (`coefficients=0.5:1:2`) and names
are listed in brackets (`only=[check,restate]`). From Python, JSON or a YAML config a real list works too. (In a YAML
config use a list: YAML reads an unquoted `8:0` as a base-60 number.)
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import LEVELS, Level
from lm_eval_hybrid.bundles.manifest import SteeringSpec
from lm_eval_hybrid.bundles.store.resolve import resolve
from lm_eval_hybrid.bundles.suite import POLICY, Choice, Suite, compose
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS, Policy, policy_for
from lm_eval_hybrid.models.ndif.client import Server

Numbers = str | int | float | Sequence[float]
Names = str | Sequence[str]

THINKING_PROMPTS = ("auto", "raw", "chat")
BACKENDS = ("local", "remote")

# Arguments of HFLM that a hybrid cannot honour, and what to do instead.
_UNSUPPORTED = {
    "pretrained": "name the models with base= and thinking=, or the bundle with behaviors=",
    "truncation": "shorten the prompt: a hybrid never truncates it",
    "think_end_token": "leave it out: the *_hybrid tasks score the text after the thought",
    "enable_thinking": "set it in chat_template_args",
    "tp_plan": "use parallelize=True: tensor parallelism does not work under nnsight's plain wrapper",
    "mixed_precision_dtype": "set dtype=, which applies to both models",
    "softmax_dtype": "leave it out: log-probabilities are float32",
}


@dataclass(frozen=True)
class HybridArguments:
    """The models, bundles and policy to run. None means: as the bundle says.

    Attributes:
        behaviors: a bundle (path, NAME, NAME@VERSION or hub address), or several as [FIRST,SECOND].
        only, without: keys of the behaviors to use, or not to use, as [KEY,KEY].
        scale: factors for behaviors' vectors, as [KEY*FACTOR], or a mapping.
        strict: how closely the models must match the bundle's: `exact`, `architecture` or `width`.
        base, thinking: models (hub ids or folders) to use instead of the bundle's.
        arm: one of `lm_eval_hybrid.decoding.policy.ARMS`.
        coefficients, windows, gate, select, seed: see `lm_eval_hybrid.decoding.policy.Policy`.
        thinking_prompt: the thinking model reads the context as it is (raw), as a user turn in its chat template
            (chat), or as the bundle says (auto).
        base_device, thinking_device: the device of each model, such as `cuda:1` or `cpu`; overrides HFLM's `device`.
        base_backend, thinking_backend: whether a model runs in this process (local) or on an NDIF server (remote).
        ndif_host: the server's address; None: NDIF_HOST, or nnsight's configuration. The key is read from
            NDIF_API_KEY.
        ndif_timeout, ndif_patience: see `lm_eval_hybrid.models.ndif.client.Server`.

    Raises:
        HybridError: an unknown value for one of the choices, or a seed that is not an integer.
    """

    behaviors: Names | Path = "embedded"
    only: Names | None = None
    without: Names | None = None
    scale: Names | Mapping[str, float] | None = None
    strict: Level = "width"
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
                raise HybridError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise HybridError(f"seed={self.seed!r} is not an integer; pass for example seed=0")

    @classmethod
    def split(cls, given: dict[str, Any]) -> tuple["HybridArguments", dict[str, Any]]:
        """Split model arguments into ours and those for HFLM.

        Raises:
            HybridError: an argument of HFLM that a hybrid cannot honour, or a misspelled one of ours.
        """
        ours = {field.name for field in fields(cls)}
        known = ours | inspect.signature(HFLM.__init__).parameters.keys()
        for name, value in given.items():
            if name in _UNSUPPORTED and value is not None:
                raise HybridError(f"{name}={value} is not supported by model hybrid; {_UNSUPPORTED[name]}")
            if name == "backend" and value not in (None, "default", "causal"):
                raise HybridError(f"backend={value} is not supported: model hybrid needs causal models; leave it out")
            near = [] if name in known else difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
            if near:
                raise HybridError(f"{name}={value} is not an argument of model hybrid; did you mean {near[0]}=?")
        chosen = {name: value for name, value in given.items() if name in ours and value is not None}
        return cls(**chosen), {name: value for name, value in given.items() if name not in ours | _UNSUPPORTED.keys()}

    @property
    def backends(self) -> dict[str, str]:
        """`local` or `remote`, by role."""
        return {"base": self.base_backend, "thinking": self.thinking_backend}

    def server(self) -> Server:
        """The NDIF server of remote models.

        Raises:
            HybridError: an invalid address, timeout or patience.
        """
        return Server.choose(self.ndif_host, self.ndif_timeout, self.ndif_patience)

    def suite(self) -> Suite:
        """Load the bundles and combine them.

        Raises:
            HybridError: a bundle is missing or invalid, or the bundles do not fit together.
        """
        bundles = [Bundle.load(resolve(name)) for name in _names("behaviors", self.behaviors)]
        if not bundles:
            raise HybridError("behaviors= is empty; name at least one bundle, as in behaviors=NAME")
        choice = Choice(
            only=None if self.only is None else tuple(_names("only", self.only)),
            without=tuple(_names("without", self.without or ())),
            scales=_scales(self.scale or {}),
        )
        return compose(bundles, choice, overridden=[name for name in POLICY if getattr(self, name) is not None])

    def policy(self, steering: SteeringSpec) -> Policy:
        """The arm's policy: the bundle's defaults, overridden by the arguments.

        Raises:
            HybridError: invalid values, or a gate or select that contradicts the arm.
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
                raise HybridError(
                    f"windows={self.windows} are not integers; list numbers of positions, as in windows=1:8"
                )
            changes["windows"] = tuple(int(window) for window in windows)
        changes |= {name: value for name in ("gate", "select") if (value := getattr(self, name)) is not None}
        policy = policy_for(self.arm, replace(defaults, **changes))
        for name in ("gate", "select"):
            if name in changes and changes[name] != getattr(policy, name):
                raise HybridError(
                    f"{name}={changes[name]} contradicts arm={self.arm}, which sets {name}={getattr(policy, name)}; "
                    "leave one of them out"
                )
        return policy


def _numbers(name: str, given: Numbers) -> list[float]:
    parts = given.split(":") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"{name}={given!r} are not numbers separated by colons; write for example {name}=1:2"
        ) from error


def _names(name: str, given: Names | Path) -> list[str]:
    if isinstance(given, (str, Path)):
        text = str(given).strip()
        # Only brackets make a list: the name of a folder may contain a comma.
        is_list = text.startswith("[") and text.endswith("]")
        return [part.strip() for part in text[1:-1].split(",") if part.strip()] if is_list else [text]
    if isinstance(given, Sequence) and all(isinstance(part, (str, Path)) for part in given):
        return [str(part) for part in given]
    raise HybridError(f"{name}={given!r} is not a list of names; write for example {name}=[first,second]")


def _scales(given: Names | Mapping[str, float]) -> dict[str, float]:
    pairs: Iterable[tuple[object, str | float]]
    if isinstance(given, Mapping):
        pairs = given.items()
    else:
        parts = [text.rpartition("*") for text in _names("scale", given)]
        pairs = [(name.strip(), factor) for name, _, factor in parts]
    try:
        return {str(name): float(factor) for name, factor in pairs}
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"scale={given!r} is not a list of BEHAVIOR*FACTOR; write for example scale=[check*0.5,restate*2]"
        ) from error
