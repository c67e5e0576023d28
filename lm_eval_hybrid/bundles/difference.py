"""What changed from one bundle to another, and which semantic-version step that calls for.

major: other models, layers or meaning (a key that is gone, or names something else); minor: retrained tensors, another
policy, behaviors added; patch: words, and results. What becomes known of a model that was left open changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import Behavior, Result
from lm_eval_hybrid.bundles.versions import STEPS, Step

if TYPE_CHECKING:
    from torch import Tensor

# Of each part of a manifest the fields, by the step that a change in them calls for.
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
    """A field that is not the same, and the step that this calls for."""

    what: str
    before: Any
    after: Any
    step: Step


@dataclass(frozen=True)
class VectorChange:
    """A vector of one bundle beside one of the other: `bias`, or a behavior's.

    before, after: their keys, which differ where the bundles share none for it and `after` is the one most like it.
    cosine: of the two vectors; norms: of each. detector: cosine of the rows of the two SAE encoders, None for the bias.
    """

    before: str
    after: str
    cosine: float
    norm_before: float
    norm_after: float
    detector: float | None

    @property
    def same(self) -> bool:
        """Whether nothing that a user could measure changed."""
        return self.cosine > 1 - 1e-6 and abs(self.norm_after - self.norm_before) <= 1e-6 * self.norm_before


@dataclass(frozen=True)
class BundleDifference:
    """All that differs between two bundles.

    step: what it calls for; None where nothing differs. stated: the step from one version number to the other, None
    where that is none upwards, or the names differ.
    """

    before: Bundle
    after: Bundle
    changes: tuple[Change, ...]
    vectors: tuple[VectorChange, ...]

    @property
    def step(self) -> Step | None:
        return min((change.step for change in self.changes), key=STEPS.index, default=None)

    @property
    def stated(self) -> Step | None:
        before, after = self.before.manifest, self.after.manifest
        return versions.step_between(before.version, after.version) if before.name == after.name else None

    @property
    def enough(self) -> bool:
        """Whether the later version number is as far above the former as the changes call for."""
        if self.step is None:
            return True
        return self.stated is not None and STEPS.index(self.stated) <= STEPS.index(self.step)


def compare(before: Bundle, after: Bundle) -> BundleDifference:
    """What is not the same in `after`."""
    moved = tuple(_moved(before, after))
    changes = [*_fields(before, after), *_behaviors(before, after), *_tensors(before, after), *_results(before, after)]
    return BundleDifference(before, after, tuple(sorted(changes, key=lambda change: STEPS.index(change.step))), moved)


def _fields(before: Bundle, after: Bundle) -> Iterator[Change]:
    old, new = before.manifest.model_dump(), after.manifest.model_dump()
    for step, parts in _FIELDS.items():
        for part, names in parts.items():
            first, second = (old[part], new[part]) if part else (old, new)
            for name in names:
                if first[name] != second[name]:
                    opened = step == "major" and None in (first[name], second[name])
                    what = f"{part}.{name}" if part else name
                    yield Change(what, first[name], second[name], "patch" if opened else step)


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
    """Tensors, vectors by key and the SAE's as whole ones, of which so many values differ."""
    import torch

    for name in sorted(before.tensors.keys() | after.tensors.keys()):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if old is None or new is None:
            if not name.startswith("vector."):  # those come and go with behaviors
                yield Change(f"tensor {name}", _shape(old), _shape(new), "minor")
        elif old.shape != new.shape:
            yield Change(f"tensor {name}", _shape(old), _shape(new), "minor")
        elif not torch.equal(old, new):
            differing = int((old != new).sum())
            yield Change(f"tensor {name}", _shape(old), f"{differing} of {old.numel()} values differ", "minor")


def _results(before: Bundle, after: Bundle) -> Iterator[Change]:
    old, new = _by_task(before), _by_task(after)
    for task in dict.fromkeys([*old, *new]):
        if old.get(task) != new.get(task):
            yield Change(f"results of {task}", old.get(task), new.get(task), "patch")


def _moved(before: Bundle, after: Bundle) -> Iterator[VectorChange]:
    if before.bias.shape != after.bias.shape:
        return
    yield VectorChange("bias", "bias", _cosine(before.bias, after.bias), _norm(before.bias), _norm(after.bias), None)
    old, new = _by_key(before), _by_key(after)
    for key, behavior in old.items():
        vector = before.tensors[behavior.tensor]
        others = {key: new[key]} if key in new else new
        cosines = {other: _cosine(vector, after.tensors[found.tensor]) for other, found in others.items()}
        match = key if key in new else max(cosines, key=cosines.__getitem__)
        other = after.tensors[new[match].tensor]
        detector = _cosine_of_rows(before, behavior, after, new[match])
        yield VectorChange(key, match, cosines[match], _norm(vector), _norm(other), detector)


def _cosine_of_rows(before: Bundle, old: Behavior, after: Bundle, new: Behavior) -> float | None:
    first, second = before.tensors["sae.encoder.weight"], after.tensors["sae.encoder.weight"]
    return _cosine(first[old.latent], second[new.latent]) if first.shape[1] == second.shape[1] else None


def _by_key(bundle: Bundle) -> Mapping[str, Behavior]:
    return {behavior.key: behavior for behavior in bundle.manifest.behaviors}


def _by_task(bundle: Bundle) -> Mapping[str, Result]:
    return {result.task: result for result in bundle.manifest.results}


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(list(tensor.shape))


def _norm(vector: Tensor) -> float:
    return float(vector.double().norm())


def _cosine(first: Tensor, second: Tensor) -> float:
    """0 where one is the zero vector."""
    norms = _norm(first) * _norm(second)
    return float(first.double() @ second.double()) / norms if norms else 0.0
