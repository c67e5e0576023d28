"""The recipe of a discovery run: a YAML file, validated."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.manifest import Count, PromptSpec, Words, first_problem
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.calibration import CalibrationRecipe
from lm_eval_hybrid.discovery.taxonomy.autoencoders import SaeRecipe
from lm_eval_hybrid.discovery.taxonomy.grading import GradingRecipe
from lm_eval_hybrid.discovery.traces.problems import ProblemSource
from lm_eval_hybrid.discovery.vectors.fitting import LikelihoodRecipe, VectorRecipe

RECIPES = Path(__file__).parent.parent / "recipes"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class TracesRecipe:
    """How many traces to generate, unless samples are given.

    Attributes:
        count: number of traces.
        max_new_tokens: of each trace.
        holdout: share of the traces to hold out of all training; the metrics in the manifest are measured on them.
    """

    count: Count
    max_new_tokens: Count
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1


class DiscoveryRecipe(BaseModel):
    """Everything that determines a bundle's content, apart from the models' weights.

    Attributes:
        base, thinking: hub ids, folders, or `embedded:base` and `embedded:thinking`.
        prompt: the form in which the thinking model gets a prompt; the base gets it verbatim.
        problems: sources of the problems for traces and calibration.
        activation: the activation of a sentence that the SAEs read: the residual at its `onset`, just before its first
            token, where decoding chooses a behavior; or the `mean` over its tokens, as in the paper.
        judge: a model that names the behaviors and grades the taxonomy; without one they are named after keywords.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: Words
    license: Words
    authors: Annotated[tuple[Words, ...], Field(min_length=1)]
    citation: str
    base: Words
    thinking: Words
    prompt: PromptSpec
    problems: Annotated[tuple[ProblemSource, ...], Field(min_length=1)]
    traces: TracesRecipe
    seed: Annotated[int, Field(ge=0, lt=2**31)]  # the range of scikit-learn's seeds
    activation: Literal["onset", "mean"] = "onset"
    sae: SaeRecipe
    judge: GradingRecipe | None = None
    vectors: VectorRecipe
    calibration: CalibrationRecipe

    @pydantic.model_validator(mode="after")
    def _check(self) -> "DiscoveryRecipe":
        networks = [setting for setting in self.calibration.settings if setting.select == "mlp"]
        if networks and isinstance(self.vectors, LikelihoodRecipe):
            raise ValueError(
                "vectors.recipe 'likelihood' fits no coefficient network, which select 'mlp' needs; use recipe "
                "'disagreement' or another select"
            )
        if self.calibration.problems and not all(source.answer for source in self.problems):
            raise ValueError("calibration needs problems with an `answer`; name the field, or set its problems to 0")
        return self


def load(name: str, **changes: Any) -> DiscoveryRecipe:
    """The package's recipe `name`, or that of a YAML file, with some fields changed.

    Raises:
        HybridError: there is no such recipe, or it is invalid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise HybridError(f"no recipe {name!r}; give a YAML file or one of {known}") from None
    except OSError as error:
        raise HybridError(f"{path}: the recipe cannot be read ({error.strerror}); give another file") from None
    fields = strict_yaml.load(data, f"{path}: a recipe", f"correct it; {RECIPES} has examples")
    try:
        return DiscoveryRecipe.model_validate(fields | changes)
    except ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; correct the recipe") from None
