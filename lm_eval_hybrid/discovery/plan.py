"""The stages of a discovery run and their settings: traces, activations, SAEs, taxonomy, gates, vectors, calibration.

Planning loads no model. Whoever changes what a stage computes from the same settings must increase its version here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe
from lm_eval_hybrid.discovery.stages import Stage, WorkFolder
from lm_eval_hybrid.discovery.traces.problems import PromptedProblem, draw
from lm_eval_hybrid.discovery.traces.trace import Trace, digest


@dataclass(frozen=True)
class DiscoveryPlan:
    """The stages of one run.

    Attributes:
        models: an identity of each model's weights, by role.
        samples: the traces to read; if empty, the thinking model generates traces.
    """

    recipe: DiscoveryRecipe
    work: WorkFolder
    models: Mapping[str, str]
    samples: tuple[Trace, ...] = ()

    @cached_property
    def problems(self) -> tuple[list[PromptedProblem], list[PromptedProblem]]:
        """The problems to generate traces for, none with `samples`, and those of calibration.

        Raises:
            HybridError: they cannot be read, or are too few.
        """
        recipe, count = self.recipe, self._generated
        seen = {trace.prompt for trace in self.samples}
        drawn = draw(recipe.problems, count + recipe.calibration.problems, recipe.seed, seen)
        return drawn[:count], drawn[count:]

    def check(self) -> None:
        """Read the problems of unfinished stages, so that their errors show before the long work.

        Raises:
            HybridError: see `problems`.
        """
        if not ((self.samples or self.traces.done) and self.calibration.done):
            _ = self.problems

    @property
    def _generated(self) -> int:
        return 0 if self.samples else self.recipe.traces.count

    @cached_property
    def traces(self) -> Stage:
        recipe = self.recipe
        settings: dict[str, Any] = {"samples": digest(self.samples)}
        if not self.samples:
            settings = {
                "thinking": self.models["thinking"],
                "prompt": recipe.prompt.model_dump(),
                "problems": [source.content() for source in recipe.problems],
                "seed": recipe.seed,
                "count": recipe.traces.count,
                "max_new_tokens": recipe.traces.max_new_tokens,
            }
        return self.work.stage("traces", 1, settings)

    @cached_property
    def activations(self) -> Stage:
        settings = {"layers": self.recipe.sae.layers, "models": self.models, "prompt": self.recipe.prompt.model_dump()}
        return self.work.stage("activations", 1, settings, self.traces)

    @cached_property
    def saes(self) -> tuple[Stage, ...]:
        """One for each layer."""
        settings = asdict(self.recipe.sae)
        del settings["layers"]
        settings |= {"seed": self.recipe.seed, "holdout": self.recipe.traces.holdout, "of": self.recipe.activation}
        return tuple(
            self.work.stage(f"sae-{layer}", 1, {"layer": layer, **settings}, self.activations)
            for layer in self.recipe.sae.layers
        )

    @cached_property
    def taxonomy(self) -> Stage:
        # How replies are fetched does not change them.
        fetching = {"timeout", "retries", "concurrency", "key_variable", "price_in", "price_out"}
        judge = self.recipe.judge and {k: v for k, v in asdict(self.recipe.judge).items() if k not in fetching}
        return self.work.stage("taxonomy", 1, {"judge": judge, "seed": self.recipe.seed}, *self.saes)

    @cached_property
    def gates(self) -> Stage:
        return self.work.stage("gates", 1, {"models": self.models}, *self.saes)

    @cached_property
    def vectors(self) -> tuple[Stage, ...]:
        """One for each seed."""
        settings = asdict(self.recipe.vectors)
        del settings["seeds"]
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.vectors.seeds)
        return tuple(self.work.stage(f"vectors-{seed}", 1, {"seed": seed, **settings}, self.gates) for seed in seeds)

    @cached_property
    def calibration(self) -> Stage:
        recipe = self.recipe
        problems = [source.content() for source in recipe.problems] if recipe.calibration.problems else []
        settings = {**asdict(recipe.calibration), "seed": recipe.seed, "from": problems, "traces": self._generated}
        return self.work.stage("calibration", 2, settings, *self.vectors)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that a run makes, in order."""
        return (
            *(() if self.samples else (self.traces,)),
            self.activations,
            *self.saes,
            *((self.taxonomy,) if self.recipe.judge else ()),
            self.gates,
            *self.vectors,
            *((self.calibration,) if self.recipe.calibration.problems else ()),
        )
