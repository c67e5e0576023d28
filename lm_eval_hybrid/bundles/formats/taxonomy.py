"""Titles, descriptions and examples of an SAE's latents, from the JSON files of the method's research repository.

Two forms: `results_by_cluster_size` holds repetitions of the naming for each number of latents, of which the one with
the best `final_score` is taken, the first where none has a score; the older `detailed_results` holds one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lm_eval_hybrid.bundles.formats.reference_files import json_object
from lm_eval_hybrid.bundles.manifest import first_problem
from lm_eval_hybrid.common.errors import HybridError

_MAX_BYTES = 1 << 23  # all numbers of latents of a layer take a megabyte
_EXAMPLES = 3


@dataclass(frozen=True)
class Category:
    """What a latent stands for, in words."""

    title: str
    description: str
    examples: tuple[str, ...] = ()


class _Detail(BaseModel):
    examples: tuple[str, ...] = ()


class _Naming(BaseModel):
    categories: tuple[tuple[int, str, str], ...] = ()
    final_score: float | None = None
    detailed_results: dict[int, _Detail] = {}


class _Size(BaseModel):
    all_results: tuple[_Naming, ...] = ()
    examples: dict[int, tuple[str, ...]] = {}


def unnamed(latent: int) -> Category:
    """What is said of a latent that has no words."""
    return Category(f"Category {latent}", "")


def read(path: Path, latents: int) -> dict[int, Category]:
    """The categories of an SAE of so many latents, by latent; none where the file has no names for that number.

    Raises:
        HybridError: where the file is not of either form.
    """
    fields = json_object(path, _MAX_BYTES)
    try:
        size = _size(fields, str(latents))
    except ValidationError as error:
        problem = first_problem(error).removeprefix("manifest: ")
        raise HybridError(
            f"{path}: a taxonomy must have categories [id, title, description]; found for {latents} latents: "
            f"{problem}; mend it"
        ) from None
    if not size.all_results:
        return {}
    best = max(size.all_results, key=_score)  # of equals the first
    return {
        latent: Category(
            " ".join(title.split()) or unnamed(latent).title,
            description.strip(),
            _examples(size.examples.get(latent) or best.detailed_results.get(latent, _Detail()).examples),
        )
        for latent, title, description in best.categories
    }


def _size(fields: Mapping[str, Any], latents: str) -> _Size:
    newer, older = (fields.get(name) or {} for name in ("results_by_cluster_size", "detailed_results"))
    if isinstance(newer, dict) and latents in newer:
        return _Size.model_validate(newer[latents])
    if isinstance(older, dict) and latents in older:
        return _Size(all_results=(_Naming.model_validate(older[latents]),))
    return _Size()


def _score(naming: _Naming) -> float:
    score = naming.final_score
    return score if score is not None and math.isfinite(score) else -math.inf


def _examples(sentences: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for sentence in sentences if (text := sentence.strip())))[:_EXAMPLES]
