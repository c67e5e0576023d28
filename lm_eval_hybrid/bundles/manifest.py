"""The manifest of a bundle: the schema of `behavior.yaml`, and reading and writing it.

A manifest is checked completely when it is built (types, ranges, consistency between its parts), rejects unknown keys
and is frozen: every `Manifest` is a sound one. Needs only pydantic and yaml, so that listing bundles imports no torch.

The string below a field is its text in docs/behavior-yaml.md and in the published JSON schema.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.bundles import versions
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.common.files import read_regular

MANIFEST_FILE = "behavior.yaml"

SCHEMA: Literal[2] = 2
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
    """A model the bundle was made with. Null means unknown: a bundle can be imported without its models."""

    id: Words
    """Hub id, or a path."""
    revision: str | None = None
    """Commit in the hub's repository; null for a path, or for the newest."""
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
    """The layer, from 0, whose output the vectors are added to."""
    site: Literal["residual_post"] = "residual_post"
    """Where they are added: to the residual stream after the layer."""
    coefficients: Annotated[tuple[float, ...], Field(min_length=1, max_length=1000)]
    """Multiples of (bias + vector) to try, in this order."""
    windows: Annotated[tuple[Index, ...], Field(min_length=1, max_length=1000)]
    """Numbers of last positions to steer, each tried with each coefficient; 0 means all positions."""
    gate: Gate = "disagreement"
    """Where to steer: where the two models' choices differ, nowhere, everywhere, or at random."""
    select: Select = "guardrail"
    """Which candidate's token is taken: the likeliest under the thinking model, the only one, the one whose
    coefficient a network computes, or a random one."""
    gate_rate: Fraction | None = None
    """Share of positions at which the gate opened on held-out data: the rate that a random gate matches."""

    @model_validator(mode="after")
    def _check(self) -> SteeringSpec:
        for name, values in (("coefficients", self.coefficients), ("windows", self.windows)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} repeat a value: {list(values)}")
        if self.gate == "random" and self.gate_rate is None:
            raise ValueError("gate_rate is missing; gate 'random' needs it")
        if self.select in ("fixed", "mlp") and len(self.windows) > 1:
            raise ValueError(f"windows are {list(self.windows)}; select {self.select!r} needs exactly one")
        if self.select == "fixed" and len(self.coefficients) > 1:
            raise ValueError(f"coefficients are {list(self.coefficients)}; select 'fixed' needs exactly one")
        return self


class SaeSpec(_Part):
    """The sparse autoencoder that names the category: its strongest latent."""

    layer: Index
    """The thinking model's layer, from 0, whose output it reads."""
    latents: Count
    """Number of latents; behaviors name some or all of them."""
    k: Count
    """Number of latents active at once in its training."""
    normalization: Literal["unit", "none"] = "unit"
    """Its input: the residual less `sae.mean`, scaled to length 1 (unit), or the residual unchanged (none)."""

    @model_validator(mode="after")
    def _check(self) -> SaeSpec:
        if self.k > self.latents:
            raise ValueError(f"k is {self.k}; it must be at most latents ({self.latents})")
        return self


class Behavior(_Part):
    """A named latent and its steering vector."""

    key: Annotated[str, Field(pattern=KEY_PATTERN, max_length=100)]
    """Its name in arguments and records."""
    latent: Index
    """The SAE's latent that selects it."""
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
            raise ValueError(f"tensor is {self.tensor!r}; it must be 'vector.{self.key}'")
        # A latent without a name is called `latent-N`; no key may claim that name for another latent.
        if re.fullmatch(r"latent-[0-9]+", self.key) and self.key != f"latent-{self.latent}":
            raise ValueError(f"latent is {self.latent}; key {self.key!r} is reserved for that latent")
        return self


class PromptSpec(_Part):
    """How the thinking model reads the context."""

    thinking: Literal["raw", "chat"]
    """Unchanged (raw), or as a user turn of its chat template (chat)."""
    prefix: str = ""
    """Text that follows it, such as `<think>` and a line break."""

    def prefixed(self, text: str) -> str:
        """`text` and the prefix, unless a chat template has written the prefix already."""
        written = self.prefix.strip() and text.rstrip().endswith(self.prefix.strip())
        return text if written else text + self.prefix


class Training(_Part):
    """How the tensors were made: enough to make them again, as far as it is known."""

    recipe: Words
    """The recipe, as JSON or by name; for an import, the source and what is known about its training."""
    seed: int | None = None
    """Seed of all random choices."""
    code_version: Words
    """The program that made the tensors, and its version."""
    data: Words
    """The training data."""
    data_sha256: Sha256 | None = None
    """sha256 of the training data."""
    holdout: dict[str, float]
    """Metrics on held-out data."""


class Result(_Part):
    """A measured evaluation."""

    task: Words
    """The harness's name of the task."""
    scores: dict[str, float]
    """Share of documents answered right, by arm."""
    gap_recovered: float | None
    """(hybrid - base) / (thinking - base), signed; null where thinking is not above base."""
    gap_interval: tuple[float, float] | None
    """Its 95% interval, by paired bootstrap over the documents; null where it is undefined."""
    steered_fraction: Fraction
    """Share of the hybrid's tokens taken from a steered candidate."""
    changed_fraction: Fraction
    """Share of the hybrid's tokens that also differ from the base's choice."""
    documents: Count
    """Number of documents answered."""
    seed: int
    """Seed of the decoding."""
    harness_version: Words
    """Version of lm-evaluation-harness."""

    @model_validator(mode="after")
    def _check(self) -> Result:
        if self.gap_recovered is None and self.gap_interval is not None:
            raise ValueError("gap_interval is given without gap_recovered; both must be null")
        if self.gap_interval and self.gap_interval[0] > self.gap_interval[1]:
            raise ValueError(f"gap_interval is {list(self.gap_interval)}; it must be [low, high]")
        return self


class Manifest(_Part):
    """Everything a bundle says about itself."""

    schema_version: Literal[2] = SCHEMA
    """Version of this schema."""
    written_by: Short | None = None
    """The lm-eval-hybrid version that wrote the file; filled in when the bundle is saved."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    """The bundle's name, the same for all its versions."""
    version: Annotated[str, Field(pattern=versions.PATTERN, max_length=100)]
    """Semantic: major = other models, layers or meaning; minor = retrained tensors or another policy; patch = words."""
    supersedes: Short | None = None
    """The version it was made from, as name@version#digest."""
    description: Words
    """What the bundle is."""
    license: Words
    """SPDX identifier of the licence, such as `MIT`."""
    authors: Annotated[tuple[str, ...], Field(min_length=1)]
    """Who made it."""
    citation: str
    """What to cite."""
    base: ModelCard
    """The steered model."""
    thinking: ModelCard
    """The model that decides when and which behavior to steer."""
    steering: SteeringSpec
    sae: SaeSpec
    behaviors: Annotated[tuple[Behavior, ...], Field(min_length=1, max_length=1000)]
    prompt: PromptSpec
    training: Training
    results: Annotated[tuple[Result, ...], Field(max_length=1000)] = ()
    """Evaluations of exactly these tensors."""
    files: dict[FileName, Sha256] = Field(default_factory=dict)
    """sha256 of every other file, by name; filled in when the bundle is saved."""

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        for layer, model, which in (
            (self.steering.layer, self.base, "steering.layer"),
            (self.sae.layer, self.thinking, "sae.layer"),
        ):
            if model.layers is not None and layer >= model.layers:
                raise ValueError(f"{which} is {layer}; it must be below {model.layers}, the layers of {model.id}")
        for name in ("key", "latent"):
            values = [getattr(behavior, name) for behavior in self.behaviors]
            if len(set(values)) < len(values):
                raise ValueError(f"behaviors share a {name}: {values}")
        highest = max(behavior.latent for behavior in self.behaviors)
        if highest >= self.sae.latents:
            raise ValueError(f"a behavior has latent {highest}; it must be below sae.latents ({self.sae.latents})")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"files name {MANIFEST_FILE}, which cannot hold its own digest")
        return self


def parse(data: bytes, source: Path) -> Manifest:
    """The manifest in YAML bytes. Raises HybridError, which begins with `source`, if it is unsound."""
    fields = strict_yaml.load(data, f"{source}: the manifest", "restore the file")
    version = fields.get("schema_version", SCHEMA)
    if type(version) is not int or version != SCHEMA:
        raise HybridError(
            f"{source}: schema_version is {reprlib.repr(version)}; this lm-eval-hybrid reads {SCHEMA}; "
            "restore the file, or pip install --upgrade lm-eval-hybrid"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise HybridError(f"{source}: {first_problem(error)}; correct it, or restore the file") from error


def dump(manifest: Manifest) -> bytes:
    """The manifest as YAML bytes: the same bytes for equal manifests, and `parse` reads them back."""
    fields = manifest.model_dump(mode="json")
    # ASCII, since yaml writes some Unicode line breaks in a way that it does not read back.
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=110).encode()


def read(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of the bundle in `folder`, and its bytes. Raises HybridError if there is no sound one."""
    data = read_bytes(folder)
    return parse(data, folder / MANIFEST_FILE), data


def read_bytes(folder: Path) -> bytes:
    """The bytes of the manifest in `folder`. Raises HybridError if there is none."""
    if not (folder / MANIFEST_FILE).exists():
        raise HybridError(
            f"{folder}: no {MANIFEST_FILE} here, which a bundle's folder must hold; give a version's folder, or "
            "NAME@VERSION"
        )
    return read_regular(folder / MANIFEST_FILE, strict_yaml.MAX_BYTES)


def problems(error: ValidationError) -> list[str]:
    """All of pydantic's problems, a line each."""
    return [_problem(dict(found)) for found in error.errors(include_url=False)]


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's problems in one line, and the number of others."""
    found = problems(error)
    return found[0] + (f" ({len(found) - 1} more)" if len(found) > 1 else "")


def _problem(found: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in found["loc"]) or "manifest"
    text = found["msg"].removeprefix("Value error, ")
    # Our own checks quote the value already, and a whole mapping would say nothing.
    if found["type"] not in ("value_error", "missing") and not isinstance(found["input"], (dict, list)):
        text += f"; found {reprlib.repr(found['input'])}"
    return one_line(f"{where}: {text}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True
