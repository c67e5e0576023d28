"""The stages of a discovery run, in their order: traces, activations, SAEs, taxonomy, gates, vectors, calibration.

What decides each is said here, without models. Whoever changes what a stage makes of the same raises its version.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.stages import Stage, Workshop
from lm_eval_hybrid.discovery.traces.problems import Problem, draw
from lm_eval_hybrid.discovery.traces.traces import Trace, digest


@dataclass(frozen=True)
class Plan:
    """Which stages a run has.

    Attributes:
        models: what identifies base and thinking model, by role.
        samples: the traces given, where none are decoded.
    """

    recipe: Recipe
    workshop: Workshop
    models: Mapping[str, str]
    samples: tuple[Trace, ...] = ()

    @cached_property
    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """Those that traces are to be decoded of, none where samples are given; and those of calibration.

        Raises:
            HybridError: where they cannot be read, or are too few.
        """
        recipe, count = self.recipe, self._decoded
        seen = {trace.prompt for trace in self.samples}
        found = draw(recipe.problems, count + recipe.calibration.problems, recipe.seed, seen)
        return found[:count], found[count:]

    def check(self) -> None:
        """Reads the problems that are yet to be answered: what is wrong with them shows before the long work.

        Raises:
            HybridError: as `problems`.
        """
        if not ((self.samples or self.traces.done) and self.calibration.done):
            _ = self.problems

    @property
    def _decoded(self) -> int:
        return 0 if self.samples else self.recipe.traces.count

    @cached_property
    def traces(self) -> Stage:
        recipe = self.recipe
        decides: dict[str, Any] = {"samples": digest(self.samples)}
        if not self.samples:
            problems = [source.content() for source in recipe.problems]
            settings = {"count": recipe.traces.count, "max_new_tokens": recipe.traces.max_new_tokens}
            prompt = recipe.prompt.model_dump()
            thinking = self.models["thinking"]
            decides = {"thinking": thinking, "prompt": prompt, "problems": problems, "seed": recipe.seed, **settings}
        return self.workshop.stage("traces", 1, decides)

    @cached_property
    def activations(self) -> Stage:
        decides = {"layers": self.recipe.sae.layers, "models": self.models, "prompt": self.recipe.prompt.model_dump()}
        return self.workshop.stage("activations", 1, decides, self.traces)

    @cached_property
    def saes(self) -> tuple[Stage, ...]:
        """One for each layer."""
        settings = asdict(self.recipe.sae)
        del settings["layers"]
        settings |= {"seed": self.recipe.seed, "holdout": self.recipe.traces.holdout, "of": self.recipe.activation}
        return tuple(
            self.workshop.stage(f"sae-{layer}", 1, {"layer": layer, **settings}, self.activations)
            for layer in self.recipe.sae.layers
        )

    @cached_property
    def taxonomy(self) -> Stage:
        # Not what only says how replies are fetched.
        how = {"timeout", "retries", "concurrency", "key_variable", "price_in", "price_out"}
        judge = self.recipe.judge and {k: v for k, v in asdict(self.recipe.judge).items() if k not in how}
        return self.workshop.stage("taxonomy", 1, {"judge": judge, "seed": self.recipe.seed}, *self.saes)

    @cached_property
    def gates(self) -> Stage:
        return self.workshop.stage("gates", 1, {"models": self.models}, *self.saes)

    @cached_property
    def vectors(self) -> tuple[Stage, ...]:
        """One for each seed."""
        settings = asdict(self.recipe.vectors)
        del settings["seeds"]
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.vectors.seeds)
        return tuple(
            self.workshop.stage(f"vectors-{seed}", 1, {"seed": seed, **settings}, self.gates) for seed in seeds
        )

    @cached_property
    def calibration(self) -> Stage:
        recipe = self.recipe
        problems = [source.content() for source in recipe.problems] if recipe.calibration.problems else []
        decides = {**asdict(recipe.calibration), "seed": recipe.seed, "from": problems, "traces": self._decoded}
        return self.workshop.stage("calibration", 2, decides, *self.vectors)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that a run makes, in their order."""
        return (
            *(() if self.samples else (self.traces,)),
            self.activations,
            *self.saes,
            *((self.taxonomy,) if self.recipe.judge else ()),
            self.gates,
            *self.vectors,
            *((self.calibration,) if self.recipe.calibration.problems else ()),
        )
