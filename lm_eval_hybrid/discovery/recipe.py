"""What a discovery run is made of: a YAML file, checked."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.manifest import Count, PromptSpec, Words, first_problem
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.calibration import CalibrationRecipe
from lm_eval_hybrid.discovery.taxonomy.grading import TaxonomyJudge
from lm_eval_hybrid.discovery.taxonomy.sweep import SaeRecipe
from lm_eval_hybrid.discovery.traces.problems import Source
from lm_eval_hybrid.discovery.vectors.fitting import LikelihoodRecipe, VectorRecipe

RECIPES = Path(__file__).parent.parent / "recipes"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class TracesRecipe:
    """What is decoded, where no samples are given.

    Attributes:
        count: traces.
        max_new_tokens: of each.
        holdout: share of the traces kept out of all training, on which the manifest's figures are measured.
    """

    count: Count
    max_new_tokens: Count
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Recipe(BaseModel):
    """Everything that decides a bundle's content, but for the models' weights.

    Attributes:
        base, thinking: hub ids, folders, or `embedded:base` and `embedded:thinking`.
        prompt: how the thinking model is given what the base reads as it stands.
        problems: what the traces, and the problems of calibration, are drawn from.
        activation: what of a sentence the autoencoder reads: the residual at its `onset`, before its first token, where
            decoding asks for a behavior; or, as the paper does, the `mean` over its tokens.
        judge: a model that names the behaviors and grades the taxonomy; without one they are named after words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: Words
    license: Words
    authors: Annotated[tuple[Words, ...], Field(min_length=1)]
    citation: str
    base: Words
    thinking: Words
    prompt: PromptSpec
    problems: Annotated[tuple[Source, ...], Field(min_length=1)]
    traces: TracesRecipe
    seed: Annotated[int, Field(ge=0, lt=2**31)]  # scikit-learn takes no others
    activation: Literal["onset", "mean"] = "onset"
    sae: SaeRecipe
    judge: TaxonomyJudge | None = None
    vectors: VectorRecipe
    calibration: CalibrationRecipe

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Recipe":
        networks = [setting for setting in self.calibration.settings if setting.select == "mlp"]
        if networks and isinstance(self.vectors, LikelihoodRecipe):
            raise ValueError(
                "select 'mlp' needs vectors.recipe 'disagreement', which makes its network; found likelihood"
            )
        if self.calibration.problems and not all(source.answer for source in self.problems):
            raise ValueError("calibration needs problems with an `answer`; name the field, or set its problems to 0")
        return self


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
