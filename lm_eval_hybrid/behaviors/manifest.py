"""The manifest of a behavior bundle: the schema of `behavior.yaml`, and reading and writing it.

A manifest is plain data. It is checked completely when it is built (types, ranges, and what the parts say
about each other), unknown keys are rejected, and it is frozen afterwards; so whoever holds a `Manifest` holds
a sound one. Needs pydantic and yaml only: bundles are listed without importing torch.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm_eval_hybrid.errors import HybridError

MANIFEST_FILE = "behavior.yaml"
SCHEMA_VERSION = 1

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
KEY_PATTERN = r"^[a-z0-9]+([-_][a-z0-9]+)*$"
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a plain name: no separators, not hidden, never `..`
# Semantic versioning without build metadata: that has no precedence, and the highest version must be one.
VERSION_PATTERN = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?$"
)

Gate = Literal["disagreement", "never", "always", "random"]
Select = Literal["guardrail", "fixed", "mlp", "random"]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=FILE_PATTERN)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelCard(_Part):
    """A model the bundle was made with. `id` is a hub id or path; `tokenizer_sha256` see compatibility."""

    id: Words
    revision: str | None = None
    architecture: Words
    hidden_size: Count
    layers: Count
    tokenizer_sha256: Sha256


class Steering(_Part):
    """How the base model is steered: after which layer (0-based), how strongly, and over how many positions.

    `windows` counts the last positions steered, 0 meaning all. `gate_rate` is the share of positions at which
    the gate opened on held-out data, the rate that the random gate matches.
    """

    layer: Index
    site: Literal["residual_post"] = "residual_post"
    coefficients: Annotated[tuple[float, ...], Field(min_length=1)]
    windows: Annotated[tuple[Index, ...], Field(min_length=1)]
    gate: Gate = "disagreement"
    select: Select = "guardrail"
    gate_rate: Fraction | None = None

    @model_validator(mode="after")
    def _check(self) -> Steering:
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


class Sae(_Part):
    """The sparse autoencoder that names the category, reading the thinking model after `layer` (0-based)."""

    layer: Index
    latents: Count
    k: Count
    normalization: Literal["unit"] = "unit"

    @model_validator(mode="after")
    def _check(self) -> Sae:
        if self.k > self.latents:
            raise ValueError(f"k must be at most latents ({self.latents}); found {self.k}")
        return self


class Behavior(_Part):
    """A named latent and its steering vector; `norm` is the vector's L2 norm (filled in by `Bundle.save`)."""

    key: Annotated[str, Field(pattern=KEY_PATTERN)]
    latent: Index
    title: Words
    description: str
    examples: tuple[str, ...]
    tensor: str
    norm: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _check(self) -> Behavior:
        if self.tensor != f"vector.{self.key}":
            raise ValueError(f"tensor must be 'vector.{self.key}'; found {self.tensor!r}")
        # `latent-N` is what latents without a name are called; a key may not say so of another latent.
        if re.fullmatch(r"latent-[0-9]+", self.key) and self.key != f"latent-{self.latent}":
            raise ValueError(f"key {self.key!r} must belong to that latent; found latent {self.latent}")
        return self


class Prompt(_Part):
    """How the thinking model is given the context: as it is, or as a user turn; then `prefix`."""

    thinking: Literal["raw", "chat"]
    prefix: str = ""


class Training(_Part):
    """What made the tensors: enough to make them again."""

    recipe: Words
    seed: int
    code_version: Words
    data: Words
    data_sha256: Sha256
    holdout: dict[str, float]


class Result(_Part):
    """A measured evaluation. `scores` by arm; the gap is signed, None where thinking does not beat base."""

    task: Words
    scores: dict[str, float]
    gap_recovered: float | None
    gap_interval: tuple[float, float] | None
    steered_fraction: Fraction
    changed_fraction: Fraction
    documents: Count
    seed: int
    harness_version: Words

    @model_validator(mode="after")
    def _check(self) -> Result:
        if (self.gap_recovered is None) != (self.gap_interval is None):
            raise ValueError("gap_recovered and gap_interval must both be given or both be null")
        if self.gap_interval and self.gap_interval[0] > self.gap_interval[1]:
            raise ValueError(f"gap_interval must be [low, high]; found {list(self.gap_interval)}")
        return self


class Manifest(_Part):
    """All that a bundle says about itself; `files` gives the sha256 of every other file, by name."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    description: Words
    license: Words
    authors: Annotated[tuple[str, ...], Field(min_length=1)]
    citation: str
    base: ModelCard
    thinking: ModelCard
    steering: Steering
    sae: Sae
    behaviors: Annotated[tuple[Behavior, ...], Field(min_length=1)]
    prompt: Prompt
    training: Training
    results: tuple[Result, ...] = ()
    files: dict[FileName, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        for layer, model, which in (
            (self.steering.layer, self.base, "steering.layer"),
            (self.sae.layer, self.thinking, "sae.layer"),
        ):
            if layer >= model.layers:
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
    fields = mapping(data, f"{source}: a manifest", "restore the file")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        advice = "mend it, or use the lm-eval-hybrid that wrote it"
        raise HybridError(f"{source}: {first_problem(error)}; {advice}") from None


def dump(manifest: Manifest) -> bytes:
    """The YAML bytes of `manifest`: equal manifests give equal bytes, and `parse` undoes it."""
    fields = manifest.model_dump(mode="json")
    # ASCII, because yaml writes some Unicode line breaks in a way that it does not read back.
    return yaml.safe_dump(fields, sort_keys=False, width=110).encode()


def read(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of the bundle in `folder`, and its bytes. HybridError where there is no sound one."""
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise HybridError(
            f"{folder}: a bundle's folder must hold {MANIFEST_FILE}; found none; "
            "give a version's folder, or NAME@VERSION"
        ) from None
    return parse(data, path), data


def mapping(data: bytes, what: str, advice: str) -> dict[str, Any]:
    """The mapping in YAML bytes. HybridError, which begins with `what` and ends in `advice`, where there is none."""
    try:
        fields = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HybridError(f"{what} must be YAML; found {' '.join(str(error).split())}; {advice}") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{what} must be a mapping; found {type(fields).__name__}; {advice}")
    return fields


def first_problem(error: ValidationError) -> str:
    """The first of the problems that pydantic found, in one line, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    text = first["msg"].removeprefix("Value error, ")
    # What was found: own checks say it themselves, and a whole mapping says nothing.
    if first["type"] not in ("value_error", "missing") and not isinstance(first["input"], (dict, list)):
        text += f"; found {reprlib.repr(first['input'])}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {text}{more}"


def version_key(version: str) -> tuple[Any, ...]:
    """A sort key for semantic versions: 1.0.0-rc.1 < 1.0.0 < 1.0.1 (semver.org, section 11)."""
    numbers, _, pre = version.partition("-")
    # Numeric identifiers sort below words; a version without pre-release above all its pre-releases.
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".") if part)
    return (*(int(number) for number in numbers.split(".")), not parts, parts)
