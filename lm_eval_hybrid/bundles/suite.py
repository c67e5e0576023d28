"""Bundles used together: several for one base, all or some of their behaviors, scaled or not.

The first bundle is the suite's frame: its models, policy and bias; all latents of its SAE are read, those without a
behavior that is kept calling for the bias alone, as in the bundle itself. An added bundle adds the latents of its
behaviors that are kept, and no others: to the same row where its SAE is the first one's, as rows of their own where it
is another. The strongest of all latents is the category. (What two SAEs answer is not on one scale: which of them is
the stronger is as they were trained, and a suite says nothing of how well that suits.) Whatever two bundles say
differently of what can be only one is a conflict, which is named.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.contents import TENSORS_FILE
from lm_eval_hybrid.bundles.manifest import Behavior, Manifest
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

# What decides which candidates are tried: an argument may settle it where bundles differ.
POLICY = ("coefficients", "windows", "gate", "select")
_SAE_READS = ("sae.encoder.weight", "sae.encoder.bias", "sae.decoder.bias", "sae.mean")


@dataclass(frozen=True)
class Part:
    """What a suite takes of one bundle: these of its behaviors, their vectors times `scales` (by key, else 1).

    own_latents: whether the latents are of another SAE than the first bundle's.
    """

    bundle: Bundle
    behaviors: tuple[Behavior, ...]
    scales: Mapping[str, float]
    own_latents: bool

    @property
    def whole(self) -> bool:
        """Whether all of the bundle's behaviors are used, as they are."""
        return not self.scales and len(self.behaviors) == len(self.bundle.manifest.behaviors)

    def vector(self, behavior: Behavior) -> Tensor:
        """The behavior's vector as it is used, [d_base]."""
        return self.scales.get(behavior.key, 1.0) * self.bundle.tensors[behavior.tensor]


@dataclass(frozen=True)
class Choice:
    """Of the behaviors which, and how strongly.

    Attributes:
        only: keys that are kept; None for all.
        without: keys that are not.
        scales: factors of the vectors, by key; the bias is never scaled.

    A key that several bundles have is written BUNDLE/KEY.

    Raises:
        HybridError: for both `only` and `without`, or a factor that is not finite.
    """

    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.only is not None and self.without:
            raise HybridError(
                f"only= or without= choose behaviors; found both, {self.only} and {self.without}; use one"
            )
        for name, scale in self.scales.items():
            if not math.isfinite(scale):
                raise HybridError(f"a scale must be a finite number; found {scale} for {name}; give another")


EVERYTHING = Choice()


@dataclass(frozen=True)
class Suite:
    """What a system steers with; made by `compose`."""

    parts: tuple[Part, ...]

    @property
    def manifest(self) -> Manifest:
        """The first bundle's: models, steering, prompt."""
        return self.parts[0].bundle.manifest

    @property
    def tensors(self) -> str | None:
        """sha256 of the tensors of the one bundle that is used as it is; None for any other suite."""
        (part, *others) = self.parts
        return None if others or not part.whole else part.bundle.manifest.files.get(TENSORS_FILE)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of the bundles' behaviors that are not used."""
        kept = {behavior.key for part in self.parts for behavior in part.behaviors}
        return tuple(b.key for part in self.parts for b in part.bundle.manifest.behaviors if b.key not in kept)

    @property
    def identity(self) -> str:
        """The bundles' identities, and which of their behaviors are used where that is not all, as they are."""
        return "+".join(map(_identity, self.parts))


def compose(bundles: Sequence[Bundle], choice: Choice = EVERYTHING, settled: Iterable[str] = ()) -> Suite:
    """The suite of the bundles, the first one being the frame.

    Args:
        settled: names in POLICY that arguments set, so that it does not matter where bundles differ in them.

    Raises:
        HybridError: for a conflict, or a behavior that no bundle has.
    """
    frame = bundles[0]
    for other in bundles[1:]:
        _check_pair(frame, other, frozenset(settled))
    known = [(bundle, behavior) for bundle in bundles for behavior in bundle.manifest.behaviors]
    kept = _kept(known, choice)
    scales = {_find(name, known): scale for name, scale in choice.scales.items()}
    for name, key in scales.keys() - kept:
        raise HybridError(f"a scale must be of a behavior that is kept; found {key} of {name}; leave its scale out")
    parts = []
    for bundle in bundles:
        own = [behavior for behavior in bundle.manifest.behaviors if (bundle.manifest.name, behavior.key) in kept]
        factors = {key: scale for (name, key), scale in scales.items() if name == bundle.manifest.name}
        parts.append(Part(bundle, tuple(own), factors, not _same_sae(frame, bundle)))
    _check_parts(parts)
    return Suite(tuple(parts))


_Known = Sequence[tuple[Bundle, Behavior]]


def _kept(known: _Known, choice: Choice) -> set[tuple[str, str]]:
    everything = {(bundle.manifest.name, behavior.key) for bundle, behavior in known}
    if choice.only is not None:
        return {_find(name, known) for name in choice.only}
    return everything - {_find(name, known) for name in choice.without}


def _find(name: str, known: _Known) -> tuple[str, str]:
    """(bundle's name, key) of the behavior that `KEY` or `BUNDLE/KEY` means."""
    every = [(bundle.manifest.name, behavior.key) for bundle, behavior in known]
    found = [pair for pair in every if name in (pair[1], "/".join(pair))]
    if len(found) == 1:
        return found[0]
    if found:
        raise HybridError(
            f"a behavior must be named without doubt; found {name} in several bundles; "
            f"write {' or '.join('/'.join(pair) for pair in found)}"
        )
    keys = [key for _, key in every]
    close = difflib.get_close_matches(name, keys, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "choose one of these"
    raise HybridError(f"a behavior must be one of {', '.join(keys)}; found {name}; {advice}")


def _check_pair(frame: Bundle, other: Bundle, settled: frozenset[str]) -> None:
    ours, theirs = frame.manifest, other.manifest
    if ours.name == theirs.name:
        raise HybridError(f"a suite takes one version of a bundle; found {ours.name} twice; leave one out")
    facts = {
        "base.hidden_size": (ours.base.hidden_size, theirs.base.hidden_size),
        "base.layers": (ours.base.layers, theirs.base.layers),
        "base.tokenizer_sha256": (ours.base.tokenizer_sha256, theirs.base.tokenizer_sha256),
        "thinking.hidden_size": (ours.thinking.hidden_size, theirs.thinking.hidden_size),
        "thinking.layers": (ours.thinking.layers, theirs.thinking.layers),
        "thinking.tokenizer_sha256": (ours.thinking.tokenizer_sha256, theirs.thinking.tokenizer_sha256),
        "steering.layer": (ours.steering.layer, theirs.steering.layer),
        "sae.layer": (ours.sae.layer, theirs.sae.layer),
        "prompt": (ours.prompt, theirs.prompt),
    }
    facts |= {
        f"steering.{name}": (getattr(ours.steering, name), getattr(theirs.steering, name))
        for name in POLICY
        if name not in settled
    }
    for name, (first, second) in facts.items():
        # What one of them leaves open cannot differ.
        if first != second and None not in (first, second):
            policy = name.removeprefix("steering.")
            advice = f"set {policy}= for both" if policy in POLICY else "use bundles made for one pair, in one way"
            raise HybridError(
                f"bundles used together must have the same {name}; found {first} in {ours.name} and {second} in "
                f"{theirs.name}; {advice}"
            )


def _check_parts(parts: Sequence[Part]) -> None:
    if not any(part.behaviors for part in parts):
        raise HybridError("a suite needs a behavior; found none that is kept; leave one in (arm=bias-only has none)")
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


def _conflict(what: str, first: str, second: str, key: str) -> None:
    raise HybridError(
        f"behaviors used together must each have their own name and latent; found {what} in both {first} and "
        f"{second}; leave one out, as in without={second}/{key}"
    )


def _same_sae(frame: Bundle, other: Bundle) -> bool:
    import torch

    if frame.manifest.sae.normalization != other.manifest.sae.normalization:
        return False
    return all(
        frame.tensors[name].shape == other.tensors[name].shape and torch.equal(frame.tensors[name], other.tensors[name])
        for name in _SAE_READS
    )


def _identity(part: Part) -> str:
    if part.whole:
        return part.bundle.identity
    used = (f"{b.key}*{part.scales[b.key]:g}" if b.key in part.scales else b.key for b in part.behaviors)
    return f"{part.bundle.identity}[{','.join(used)}]"
