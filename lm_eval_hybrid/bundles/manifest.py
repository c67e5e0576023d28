"""The manifest of a behavior bundle: the schema of `behavior.yaml`, and reading and writing it.

A manifest is plain data. It is checked completely when it is built (types, ranges, and what the parts say
about each other), unknown keys are rejected, and it is frozen afterwards; so whoever holds a `Manifest` holds
a sound one. Needs pydantic and yaml only: bundles are listed without importing torch.

What is written below a field is its text in docs/behavior-yaml.md and in the published JSON schema.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.bundles import migrations, versions
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.common.files import read_regular

MANIFEST_FILE = "behavior.yaml"

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
KEY_PATTERN = r"^[a-z0-9]+([-_][a-z0-9]+)*$"
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a plain name: no separators, not hidden, never `..`

Gate = Literal["disagreement", "never", "always", "random"]
Select = Literal["guardrail", "fixed", "mlp", "random"]
Count = Annotated[int, Field(ge=1, le=1 << 24)]
Index = Annotated[int, Field(ge=0, le=1 << 24)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(min_length=1)]
Short = Annotated[str, Field(min_length=1, max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=FILE_PATTERN, max_length=100)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelCard(_Part):
    """A model the bundle was made with. What is null was not known: a bundle can be imported without the models."""

    id: Words
    """Hub id, or a path."""
    revision: str | None = None
    """Commit of the hub's repository; null for a path, or for whatever is newest."""
    architecture: Words | None = None
    """Class of the model, such as `Qwen2ForCausalLM`."""
    hidden_size: Count
    """Width of the residual stream."""
    layers: Count | None = None
    """Number of layers."""
    tokenizer_sha256: Sha256 | None = None
    """sha256 of the vocabulary: the sorted (token, id) pairs as ASCII JSON without spaces."""


class SteeringSpec(_Part):
    """How the base model is steered."""

    layer: Index
    """The layer, from 0, after which the vectors are added."""
    site: Literal["residual_post"] = "residual_post"
    """What they are added to: the layer's output."""
    coefficients: Annotated[tuple[float, ...], Field(min_length=1, max_length=1000)]
    """Multiples of (bias + vector) that are tried, in this order."""
    windows: Annotated[tuple[Index, ...], Field(min_length=1, max_length=1000)]
    """How many of the last positions are steered, each with each coefficient; 0 means all."""
    gate: Gate = "disagreement"
    """Where it steers: where the models' choices differ, nowhere, everywhere, or at random."""
    select: Select = "guardrail"
    """Which candidate's token is taken: the one likeliest under the thinking model, the only one, one whose
    coefficient a network computes, or one at random."""
    gate_rate: Fraction | None = None
    """Share of positions at which the gate opened on held-out data: the rate that a random gate matches."""

    @model_validator(mode="after")
    def _check(self) -> SteeringSpec:
        for name, values in (("coefficients", self.coefficients), ("windows", self.windows)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ from one another; found {list(values)}")
        if self.gate == "random" and self.gate_rate is None:
            raise ValueError("gate 'random' needs gate_rate; found none")
        if self.select in ("fixed", "mlp") and len(self.windows) > 1:
            raise ValueError(f"select {self.select!r} needs one window; found {list(self.windows)}")
        if self.select == "fixed" and len(self.coefficients) > 1:
            raise ValueError(f"select 'fixed' needs one coefficient; found {list(self.coefficients)}")
        return self


class SaeSpec(_Part):
    """The sparse autoencoder that names the category: the latent that answers most strongly."""

    layer: Index
    """The thinking model's layer, from 0, after which it reads."""
    latents: Count
    """Its latents, of which behaviors name some or all."""
    k: Count
    """How many were active at once in its training."""
    normalization: Literal["unit", "none"] = "unit"
    """What it reads: the residual less `sae.mean`, scaled to length 1 (unit) or as it is (none)."""

    @model_validator(mode="after")
    def _check(self) -> SaeSpec:
        if self.k > self.latents:
            raise ValueError(f"k must be at most latents ({self.latents}); found {self.k}")
        return self


class Behavior(_Part):
    """A named latent and its steering vector."""

    key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=100)]
    """The name in arguments and records."""
    latent: Index
    """The latent of the SAE that calls for it."""
    title: Words
    """A few words for tables."""
    description: str
    """What such sentences do."""
    examples: tuple[str, ...]
    """Sentences at which the latent is strongest."""
    tensor: Annotated[str, Field(max_length=120)]
    """Its vector in tensors.safetensors: `vector.` and the key."""
    norm: Annotated[float, Field(ge=0)] = 0.0
    """L2 norm of the vector; filled in when the bundle is saved."""

    @model_validator(mode="after")
    def _check(self) -> Behavior:
        if self.tensor != f"vector.{self.key}":
            raise ValueError(f"tensor must be 'vector.{self.key}'; found {self.tensor!r}")
        # `latent-N` is what latents without a name are called; a key may not say so of another latent.
        if re.fullmatch(r"latent-[0-9]+", self.key) and self.key != f"latent-{self.latent}":
            raise ValueError(f"key {self.key!r} must belong to that latent; found latent {self.latent}")
        return self


class PromptSpec(_Part):
    """How the thinking model is given the context."""

    thinking: Literal["raw", "chat"]
    """As it is, or as a user turn of its chat template."""
    prefix: str = ""
    """What follows it, such as `<think>` and a line break."""

    def prefixed(self, text: str) -> str:
        """`text` and the prefix, which is not repeated where a chat template has written it already."""
        written = self.prefix.strip() and text.rstrip().endswith(self.prefix.strip())
        return text if written else text + self.prefix


class Training(_Part):
    """What made the tensors: enough to make them again, as far as it is known."""

    recipe: Words
    """The recipe, as JSON or by name; for an import, where the tensors are from and what is known of them."""
    seed: int | None = None
    """Of everything random in it."""
    code_version: Words
    """The program that made the tensors, and its version."""
    data: Words
    """What they were made from."""
    data_sha256: Sha256 | None = None
    """sha256 of that."""
    holdout: dict[str, float]
    """Figures on data held out."""


class Result(_Part):
    """A measured evaluation."""

    task: Words
    """The harness's name of the task."""
    scores: dict[str, float]
    """Share of documents answered right, by arm."""
    gap_recovered: float | None
    """(hybrid - base) / (thinking - base), signed; null where thinking is not above base."""
    gap_interval: tuple[float, float] | None
    """Its 95% interval, by paired bootstrap over the documents; null where it is not defined."""
    steered_fraction: Fraction
    """Share of the hybrid's tokens taken from a steered candidate."""
    changed_fraction: Fraction
    """Share of the hybrid's tokens that also differ from the base's choice."""
    documents: Count
    """How many were answered."""
    seed: int
    """Of the decoding."""
    harness_version: Words
    """Of lm-evaluation-harness."""

    @model_validator(mode="after")
    def _check(self) -> Result:
        if self.gap_recovered is None and self.gap_interval is not None:
            raise ValueError("gap_interval must be null where gap_recovered is")
        if self.gap_interval and self.gap_interval[0] > self.gap_interval[1]:
            raise ValueError(f"gap_interval must be [low, high]; found {list(self.gap_interval)}")
        return self


class Manifest(_Part):
    """All that a bundle says about itself."""

    schema_version: Literal[2] = migrations.LATEST
    """Of this schema; manifests of older ones are read as well."""
    written_by: Short | None = None
    """The lm-eval-hybrid that wrote the file; filled in when the bundle is saved."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    """The bundle's name, the same for all its versions."""
    version: Annotated[str, Field(pattern=versions.PATTERN, max_length=100)]
    """Semantic: major = other models, layers or meaning; minor = retrained tensors or another policy; patch = words."""
    supersedes: Short | None = None
    """The version it was made from, as name@version#digest."""
    description: Words
    """What it is."""
    license: Words
    """SPDX identifier of the licence, such as `MIT`."""
    authors: Annotated[tuple[str, ...], Field(min_length=1)]
    """Who made it."""
    citation: str
    """What to cite."""
    base: ModelCard
    """The model that is steered."""
    thinking: ModelCard
    """The model that says when and which."""
    steering: SteeringSpec
    sae: SaeSpec
    behaviors: Annotated[tuple[Behavior, ...], Field(min_length=1, max_length=1000)]
    prompt: PromptSpec
    training: Training
    results: Annotated[tuple[Result, ...], Field(max_length=1000)] = ()
    """Evaluations of these very tensors."""
    files: dict[FileName, Sha256] = Field(default_factory=dict)
    """sha256 of every other file, by name; filled in when the bundle is saved."""

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        for layer, model, which in (
            (self.steering.layer, self.base, "steering.layer"),
            (self.sae.layer, self.thinking, "sae.layer"),
        ):
            if model.layers is not None and layer >= model.layers:
                raise ValueError(f"{which} must be below {model.layers}, the layers of {model.id}; found {layer}")
        for name in ("key", "latent"):
            values = [getattr(behavior, name) for behavior in self.behaviors]
            if len(set(values)) < len(values):
                raise ValueError(f"behaviors must each have their own {name}; found {values}")
        highest = max(behavior.latent for behavior in self.behaviors)
        if highest >= self.sae.latents:
            raise ValueError(f"behaviors' latents must be below sae.latents ({self.sae.latents}); found {highest}")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"files must not name {MANIFEST_FILE}, which cannot hold its own digest")
        return self


def parse(data: bytes, source: Path) -> Manifest:
    """The manifest in the YAML bytes `data`. HybridError, which begins with `source`, where it is unsound."""
    fields = strict_yaml.load(data, f"{source}: a manifest", "restore the file")
    try:
        return Manifest.model_validate(migrations.migrate(fields, str(source)))
    except ValidationError as error:
        raise HybridError(f"{source}: {first_problem(error)}; mend it, or restore the file") from error


def dump(manifest: Manifest) -> bytes:
    """The YAML bytes of `manifest`: equal manifests give equal bytes, and `parse` undoes it."""
    fields = manifest.model_dump(mode="json")
    # ASCII, because yaml writes some Unicode line breaks in a way that it does not read back; and no anchors.
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=110).encode()


def read(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of the bundle in `folder`, and its bytes. HybridError where there is no sound one."""
    data = read_bytes(folder)
    return parse(data, folder / MANIFEST_FILE), data


def read_bytes(folder: Path) -> bytes:
    """The bytes of the manifest in `folder`. HybridError where there is none."""
    if not (folder / MANIFEST_FILE).exists():
        raise HybridError(
            f"{folder}: a bundle's folder must hold {MANIFEST_FILE}; found none; "
            "give a version's folder, or NAME@VERSION"
        )
    return read_regular(folder / MANIFEST_FILE, strict_yaml.MAX_BYTES)


def problems(error: ValidationError) -> list[str]:
    """What pydantic found, a line each."""
    return [_problem(dict(found)) for found in error.errors(include_url=False)]


def first_problem(error: ValidationError) -> str:
    """The first of the problems that pydantic found, in one line, and how many more there are."""
    found = problems(error)
    return found[0] + (f" ({len(found) - 1} more)" if len(found) > 1 else "")


def _problem(found: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in found["loc"]) or "manifest"
    text = found["msg"].removeprefix("Value error, ")
    # What was found: own checks say it themselves, and a whole mapping says nothing.
    if found["type"] not in ("value_error", "missing") and not isinstance(found["input"], (dict, list)):
        text += f"; found {reprlib.repr(found['input'])}"
    return one_line(f"{where}: {text}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True
