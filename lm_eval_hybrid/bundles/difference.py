"""Compare two bundles, and make an edited copy the next version.

Every change calls for a step of the semantic version. major: other models, layers or meaning (a key that is gone, or
means something else); minor: retrained tensors, another policy, new behaviors; patch: words, results, and facts about a
model that were unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import Behavior
from lm_eval_hybrid.bundles.versions import STEPS, Step
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

# The manifest's fields, by the step that a change calls for and the part they are in ("" is the manifest itself).
_FIELDS: dict[Step, dict[str, tuple[str, ...]]] = {
    "major": {
        "base": ("id", "revision", "architecture", "hidden_size", "layers", "tokenizer_sha256"),
        "thinking": ("id", "revision", "architecture", "hidden_size", "layers", "tokenizer_sha256"),
        "steering": ("layer", "site"),
        "sae": ("layer", "normalization"),
    },
    "minor": {
        "steering": ("coefficients", "windows", "gate", "select", "gate_rate"),
        "sae": ("latents", "k"),
        "prompt": ("thinking", "prefix"),
        "training": ("recipe", "seed", "data", "data_sha256"),
    },
    "patch": {"": ("description", "license", "authors", "citation"), "training": ("code_version", "holdout")},
}
_WORDS = ("title", "description", "examples")


@dataclass(frozen=True)
class Change:
    """A field whose value differs, and the step that this calls for."""

    what: str
    before: Any
    after: Any
    step: Step


@dataclass(frozen=True)
class VectorChange:
    """A vector of one bundle beside one of the other: the bias, or a behavior's vector.

    Attributes:
        before, after: the keys, or `bias`. A key that the second bundle lacks is paired with its most similar vector.
        cosine: of the two vectors.
        detector: cosine of the rows of the two SAE encoders; None for the bias, or if their widths differ.
    """

    before: str
    after: str
    cosine: float
    norm_before: float
    norm_after: float
    detector: float | None

    @property
    def same(self) -> bool:
        """Whether the vectors are equal for all practical purposes."""
        return self.cosine > 1 - 1e-6 and abs(self.norm_after - self.norm_before) <= 1e-6 * self.norm_before


@dataclass(frozen=True)
class BundleDifference:
    """Everything that differs between two bundles."""

    before: Bundle
    after: Bundle
    changes: tuple[Change, ...]
    vectors: tuple[VectorChange, ...]

    @property
    def step(self) -> Step | None:
        """The version step that the changes call for; None if there are none."""
        return min((change.step for change in self.changes), key=STEPS.index, default=None)

    @property
    def stated(self) -> Step | None:
        """The step between the two version numbers; None if it is not upwards, or the names differ."""
        before, after = self.before.manifest, self.after.manifest
        return versions.step_between(before.version, after.version) if before.name == after.name else None

    @property
    def enough(self) -> bool:
        """Whether the stated step is at least what the changes call for."""
        if self.step is None:
            return True
        return self.stated is not None and STEPS.index(self.stated) <= STEPS.index(self.step)


def compare(before: Bundle, after: Bundle) -> BundleDifference:
    """All changes from one bundle to another, those of the largest step first."""
    changes = [*_fields(before, after), *_behaviors(before, after), *_tensors(before, after), *_results(before, after)]
    changes.sort(key=lambda change: STEPS.index(change.step))
    return BundleDifference(before, after, tuple(changes), tuple(_vectors(before, after)))


def next_version(former: Bundle, edited: Path, least: Step = "patch") -> BundleDifference:
    """The bundle in an edited copy of `former`'s folder, with the version number that follows; not saved yet.

    Results copied from `former` are dropped if more than words changed: they belong to other tensors or another policy.

    Args:
        edited: a bundle's folder whose digests, norms and card may be out of date.
        least: the smallest step to take.

    Raises HybridError if the copy is unsound otherwise, has another name, or nothing changed.
    """
    copy = Bundle.load(edited, sealed=False)
    if copy.manifest.name != former.manifest.name:
        needed = f"a new version keeps its name, {former.manifest.name}"
        raise HybridError(f"{edited}: the name is {copy.manifest.name}; {needed}; restore it")
    difference = compare(former, copy)
    if difference.step is None:
        raise HybridError(f"{edited}: no change from {former.identity}; a new version must differ; edit it first")
    step = min(difference.step, least, key=STEPS.index)
    stale = step != "patch" and copy.manifest.results == former.manifest.results
    changes = {
        "version": versions.following(former.manifest.version, step),
        "supersedes": former.identity,
        "results": () if stale else copy.manifest.results,
    }
    manifest = copy.manifest.model_copy(update=changes)
    return compare(former, replace(copy, manifest=manifest, path=None, manifest_sha256=None))


def _fields(before: Bundle, after: Bundle) -> Iterator[Change]:
    old, new = before.manifest.model_dump(), after.manifest.model_dump()
    for step, parts in _FIELDS.items():
        for part, names in parts.items():
            first, second = (old[part], new[part]) if part else (old, new)
            for name in names:
                if first[name] != second[name]:
                    was_unknown = step == "major" and None in (first[name], second[name])
                    what = f"{part}.{name}" if part else name
                    yield Change(what, first[name], second[name], "patch" if was_unknown else step)


def _behaviors(before: Bundle, after: Bundle) -> Iterator[Change]:
    old, new = _by_key(before), _by_key(after)
    for key in [key for key in old if key not in new]:
        yield Change(f"behavior {key}", old[key].title, None, "major")
    for key in [key for key in new if key not in old]:
        yield Change(f"behavior {key}", None, new[key].title, "minor")
    for key in [key for key in old if key in new]:
        for name in _WORDS:
            first, second = getattr(old[key], name), getattr(new[key], name)
            if first != second:
                yield Change(f"{key}.{name}", first, second, "patch")


def _tensors(before: Bundle, after: Bundle) -> Iterator[Change]:
    """Changed tensors: vectors by key, the SAE's tensors as a whole, each with the number of values that differ."""
    import torch

    for name in sorted(before.tensors.keys() | after.tensors.keys()):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if old is None or new is None:
            if not name.startswith("vector."):  # a vector comes and goes with its behavior
                yield Change(f"tensor {name}", _shape(old), _shape(new), "minor")
        elif old.shape != new.shape:
            yield Change(f"tensor {name}", _shape(old), _shape(new), "minor")
        elif not torch.equal(old, new):
            differing = int((old != new).sum())
            yield Change(f"tensor {name}", _shape(old), f"{differing} of {old.numel()} values differ", "minor")


def _results(before: Bundle, after: Bundle) -> Iterator[Change]:
    old, new = ({result.task: result for result in bundle.manifest.results} for bundle in (before, after))
    for task in dict.fromkeys([*old, *new]):
        if old.get(task) != new.get(task):
            yield Change(f"results of {task}", old.get(task), new.get(task), "patch")


def _vectors(before: Bundle, after: Bundle) -> Iterator[VectorChange]:
    if before.bias.shape != after.bias.shape:
        return
    yield VectorChange("bias", "bias", _cosine(before.bias, after.bias), _norm(before.bias), _norm(after.bias), None)
    old, new = _by_key(before), _by_key(after)
    encoders = before.tensors["sae.encoder.weight"], after.tensors["sae.encoder.weight"]
    for key, behavior in old.items():
        vector = before.tensors[behavior.tensor]
        candidates = {key: new[key]} if key in new else new
        cosines = {other: _cosine(vector, after.tensors[found.tensor]) for other, found in candidates.items()}
        match = max(cosines, key=cosines.__getitem__)
        other = after.tensors[new[match].tensor]
        rows = encoders[0][behavior.latent], encoders[1][new[match].latent]
        detector = _cosine(*rows) if rows[0].shape == rows[1].shape else None
        yield VectorChange(key, match, cosines[match], _norm(vector), _norm(other), detector)


def _by_key(bundle: Bundle) -> Mapping[str, Behavior]:
    return {behavior.key: behavior for behavior in bundle.manifest.behaviors}


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(list(tensor.shape))


def _norm(vector: Tensor) -> float:
    return float(vector.double().norm())


def _cosine(first: Tensor, second: Tensor) -> float:
    """The cosine of two vectors; 0 if one is the zero vector."""
    norms = _norm(first) * _norm(second)
    return float(first.double() @ second.double()) / norms if norms else 0.0
