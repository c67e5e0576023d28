"""Several bundles used together for one base model, with all or some of their behaviors, scaled or not.

The first bundle is the suite's frame: it gives models, policy and bias, and all latents of its SAE are read; a latent
without a behavior in use steers by the bias alone, as in the bundle itself. An added bundle adds only the latents of
its behaviors in use: to the same rows if its SAE is the frame's, else as rows of their own. The strongest latent of all
is the category. (Two SAEs have no common scale: which latent is stronger follows from their training, and nothing here
judges that.) Bundles that state different values for something that exists only once are in conflict, and refused.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.contents import TENSORS_FILE
from lm_eval_hybrid.bundles.manifest import Behavior, Manifest
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

# Fields of the policy, in which bundles may differ if an argument overrides them.
POLICY = ("coefficients", "windows", "gate", "select")
_SAE_INPUTS = ("sae.encoder.weight", "sae.encoder.bias", "sae.decoder.bias", "sae.mean")


@dataclass(frozen=True)
class Part:
    """One bundle's share of a suite.

    Attributes:
        behaviors: those in use.
        scales: factors of their vectors by key; 1 for any other.
        own_latents: whether the latents are of another SAE than the frame's.
    """

    bundle: Bundle
    behaviors: tuple[Behavior, ...]
    scales: Mapping[str, float]
    own_latents: bool

    @property
    def whole(self) -> bool:
        """Whether all behaviors of the bundle are used, unscaled."""
        return not self.scales and len(self.behaviors) == len(self.bundle.manifest.behaviors)

    def vector(self, behavior: Behavior) -> Tensor:
        """The behavior's scaled vector, [d_base]."""
        return self.scales.get(behavior.key, 1.0) * self.bundle.tensors[behavior.tensor]


@dataclass(frozen=True)
class Choice:
    """Which behaviors to use, and how strongly. A key that several bundles have is written BUNDLE/KEY.

    Attributes:
        only: keys to use; None for all.
        without: keys not to use.
        scales: factors of the vectors, by key; the bias is never scaled.

    Raises HybridError for both `only` and `without`, or a factor that is not finite.
    """

    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.only is not None and self.without:
            raise HybridError(f"only= is {self.only} and without= is {self.without}; they exclude each other; use one")
        for name, scale in self.scales.items():
            if not math.isfinite(scale):
                raise HybridError(f"the scale of {name} is {scale}; it must be a finite number; give another")


EVERYTHING = Choice()


@dataclass(frozen=True)
class Suite:
    """The bundles that a model is steered with; made by `compose`."""

    parts: tuple[Part, ...]

    @property
    def manifest(self) -> Manifest:
        """The frame's manifest: models, steering, prompt."""
        return self.parts[0].bundle.manifest

    @property
    def tensors(self) -> str | None:
        """sha256 of the tensors if the suite is one bundle, unchanged; None for any other suite."""
        (part, *others) = self.parts
        return None if others or not part.whole else part.bundle.manifest.files.get(TENSORS_FILE)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of the bundles' behaviors that are not used."""
        used = {behavior.key for part in self.parts for behavior in part.behaviors}
        return tuple(b.key for part in self.parts for b in part.bundle.manifest.behaviors if b.key not in used)

    @property
    def identity(self) -> str:
        """The bundles' identities, each followed by the behaviors in use unless that is all of them, unscaled."""
        return "+".join(map(_identity, self.parts))


def compose(bundles: Sequence[Bundle], choice: Choice = EVERYTHING, overridden: Iterable[str] = ()) -> Suite:
    """The suite of the bundles, the first one being the frame.

    Args:
        overridden: names in POLICY that arguments set, in which the bundles may therefore differ.

    Raises HybridError for a conflict, or a behavior that no bundle has.
    """
    frame = bundles[0]
    for other in bundles[1:]:
        _check_pair(frame, other, frozenset(overridden))
    known = [(bundle.manifest.name, behavior.key) for bundle in bundles for behavior in bundle.manifest.behaviors]
    if choice.only is not None:
        used = {_find(name, known) for name in choice.only}
    else:
        used = set(known) - {_find(name, known) for name in choice.without}
    scales = {_find(name, known): scale for name, scale in choice.scales.items()}
    for name, key in scales.keys() - used:
        raise HybridError(f"{key} of {name} has a scale but is left out; only behaviors in use can be scaled; drop it")
    parts = []
    for bundle in bundles:
        name = bundle.manifest.name
        own = tuple(behavior for behavior in bundle.manifest.behaviors if (name, behavior.key) in used)
        factors = {key: scale for (owner, key), scale in scales.items() if owner == name}
        parts.append(Part(bundle, own, factors, not _same_sae(frame, bundle)))
    _check_parts(parts)
    return Suite(tuple(parts))


def _find(name: str, known: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """(bundle's name, key) of the behavior that `KEY` or `BUNDLE/KEY` names."""
    matches = [pair for pair in known if name in (pair[1], "/".join(pair))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " or ".join("/".join(pair) for pair in matches)
        raise HybridError(f"several bundles have a behavior {name}; a name must be unambiguous; write {names}")
    keys = [key for _, key in known]
    close = difflib.get_close_matches(name, keys, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "choose one of them"
    raise HybridError(f"no behavior {name}; the bundles have {', '.join(keys)}; {advice}")


def _check_pair(frame: Bundle, other: Bundle, overridden: frozenset[str]) -> None:
    ours, theirs = frame.manifest, other.manifest
    if ours.name == theirs.name:
        raise HybridError(f"{ours.name} is given twice; a suite takes one version of a bundle; drop one")
    second = _shared(theirs)
    for name, value in _shared(ours).items():
        policy = name.removeprefix("steering.")
        # An unknown value is no conflict.
        if policy not in overridden and value != second[name] and None not in (value, second[name]):
            advice = f"set {policy}= for both" if policy in POLICY else "use bundles made for one pair, in one way"
            found = f"{name} is {value} in {ours.name} and {second[name]} in {theirs.name}"
            raise HybridError(f"{found}; bundles used together must agree; {advice}")


def _shared(manifest: Manifest) -> dict[str, object]:
    """The fields in which bundles used together must agree."""
    model = ("hidden_size", "layers", "tokenizer_sha256")
    names = {"base": model, "thinking": model, "steering": ("layer", *POLICY), "sae": ("layer",)}
    fields = {f"{part}.{name}": getattr(getattr(manifest, part), name) for part in names for name in names[part]}
    return {**fields, "prompt": manifest.prompt}


def _check_parts(parts: Sequence[Part]) -> None:
    if not any(part.behaviors for part in parts):
        raise HybridError("all behaviors are left out; a suite needs one; keep one (arm=bias-only needs none)")
    owners: dict[str, str] = {}
    latents: dict[int, str] = {}
    for part in parts:
        name = part.bundle.manifest.name
        for behavior in part.behaviors:
            if behavior.key in owners:
                _conflict(f"key {behavior.key}", owners[behavior.key], name, behavior.key)
            owners[behavior.key] = name
            if not part.own_latents:
                if behavior.latent in latents:
                    _conflict(f"latent {behavior.latent} of one SAE", latents[behavior.latent], name, behavior.key)
                latents[behavior.latent] = name


def _conflict(what: str, first: str, second: str, key: str) -> NoReturn:
    needed = "behaviors used together need their own names and latents"
    raise HybridError(f"{first} and {second} both have {what}; {needed}; leave one out, as in without={second}/{key}")


def _same_sae(frame: Bundle, other: Bundle) -> bool:
    import torch

    if frame.manifest.sae.normalization != other.manifest.sae.normalization:
        return False
    return all(
        frame.tensors[name].shape == other.tensors[name].shape and torch.equal(frame.tensors[name], other.tensors[name])
        for name in _SAE_INPUTS
    )


def _identity(part: Part) -> str:
    if part.whole:
        return part.bundle.identity
    used = (f"{b.key}*{part.scales[b.key]:g}" if b.key in part.scales else b.key for b in part.behaviors)
    return f"{part.bundle.identity}[{','.join(used)}]"
