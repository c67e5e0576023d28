"""What a discovery run is made of: a YAML file, checked."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.discovery.sae import SaeRecipe
from lm_eval_hybrid.discovery.vectors import VectorRecipe
from lm_eval_hybrid.errors import HybridError

RECIPES = Path(__file__).parent.parent / "recipes"


class Recipe(BaseModel):
    """Everything that decides a bundle's content, but for the models' weights.

    Attributes:
        base, thinking: hub ids, folders, or `embedded:base` and `embedded:thinking`.
        prompts: a jsonl file with a `prompt` a line, or `embedded`: seeded problems of the embedded pair.
        max_new_tokens: of each trace.
        holdout: share of the traces kept out of training, on which the manifest's figures are measured.
        coefficients, windows: candidates that decoding tries by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    license: str
    authors: tuple[str, ...]
    citation: str
    base: str
    thinking: str
    prompts: str
    max_new_tokens: Annotated[int, Field(ge=1)]
    holdout: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    coefficients: tuple[float, ...]
    windows: tuple[int, ...]
    sae: SaeRecipe
    vectors: VectorRecipe


def load(name: str, **changes: Any) -> Recipe:
    """The recipe that comes with the package under `name`, or the file `name`, with some fields changed.

    Raises:
        HybridError: where there is none, or it is not a recipe.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        fields = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise HybridError(f"a recipe must be one of {known}, or a YAML file; found {name!r}; name one") from None
    except yaml.YAMLError as error:
        raise HybridError(f"{path}: a recipe must be YAML; found {' '.join(str(error).split())}; mend it") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{path}: a recipe must be a mapping; found {type(fields).__name__}; see {RECIPES}")
    try:
        return Recipe.model_validate(fields | changes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HybridError(f"{path}: {where}: {first['msg']}; mend it") from None
