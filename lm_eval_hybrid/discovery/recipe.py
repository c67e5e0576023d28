"""What a discovery run is made of: a YAML file, checked."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.behaviors import strict_yaml
from lm_eval_hybrid.behaviors.manifest import Count, Index, Words, first_problem
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

    description: Words
    license: Words
    authors: Annotated[tuple[Words, ...], Field(min_length=1)]
    citation: str
    base: Words
    thinking: Words
    prompts: Words
    max_new_tokens: Count
    holdout: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    coefficients: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1)]
    windows: Annotated[tuple[Index, ...], Field(min_length=1)]
    sae: SaeRecipe
    vectors: VectorRecipe


def load(name: str, **changes: Any) -> Recipe:
    """The recipe that comes with the package under `name`, or the file `name`, with some fields changed.

    Raises:
        HybridError: where there is none, or it is not a recipe.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise HybridError(f"a recipe must be one of {known}, or a YAML file; found {name!r}; name one") from None
    except OSError as error:
        raise HybridError(f"{path}: a recipe must be a readable file; found {error.strerror}; name another") from None
    fields = strict_yaml.load(data, f"{path}: a recipe", f"mend it; {RECIPES} has examples")
    try:
        return Recipe.model_validate(fields | changes)
    except ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; mend it") from None
