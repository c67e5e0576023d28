"""A discovery run: the stages of a plan made, as far as they are not there yet, and what is found in them."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Behavior
from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery import calibration
from lm_eval_hybrid.discovery.activations import disagreements, store
from lm_eval_hybrid.discovery.activations.disagreements import Disagreements
from lm_eval_hybrid.discovery.activations.shards import Shards
from lm_eval_hybrid.discovery.calibration import Calibration
from lm_eval_hybrid.discovery.found import Found
from lm_eval_hybrid.discovery.plan import Plan
from lm_eval_hybrid.discovery.taxonomy import naming
from lm_eval_hybrid.discovery.taxonomy.grading import Grades
from lm_eval_hybrid.discovery.taxonomy.sweep import Entry, LayerSweep, Sweep, sweep_layer
from lm_eval_hybrid.discovery.traces import generating, sources
from lm_eval_hybrid.discovery.traces.pair import Encoded, Pair
from lm_eval_hybrid.discovery.traces.traces import Trace
from lm_eval_hybrid.discovery.vectors import fitting
from lm_eval_hybrid.discovery.vectors.fitted import FittedVectors, measure_effects
from lm_eval_hybrid.discovery.vectors.fitting import FitData
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model_remote import steered_model

log = logging.getLogger(__name__)
READ = 8192  # sentences' activations that are encoded at once
TRACES_FILE, GRADES_FILE = "traces.jsonl", "grades.json"


class Run:
    """Makes the stages of a plan.

    Args:
        ranks: the processes that work side by side.
    """

    def __init__(self, plan: Plan, pair: Pair, ranks: Ranks = Ranks()) -> None:  # noqa: B008  (frozen)
        self._plan, self.pair, self._ranks = plan, pair, ranks
        self._recipe = plan.recipe

    def run(self, until: str | None = None) -> Found | None:
        """Makes all stages, or those up to the one of this name. None for the latter, and in all processes but one.

        Raises:
            HybridError: where traces, sentences or disagreements are too few to learn from and to measure on.
        """
        steps: dict[str, Callable[[], object]] = {
            "traces": lambda: self.traces,
            "activations": lambda: self.store,
            "sae": lambda: self.sweep if self._ranks.first else None,
            "taxonomy": lambda: self.grades if self._ranks.first else None,
            "gates": lambda: self.gates,
            "vectors": lambda: self.fits if self._ranks.first else None,
            "calibration": lambda: self.calibration if self._ranks.first else None,
        }
        for name, step in steps.items():
            step()
            self._ranks.wait()
            if name == until:
                return None
        return self._found() if self._ranks.first else None

    @cached_property
    def traces(self) -> list[Trace]:
        plan, recipe = self._plan, self._recipe
        if plan.samples:
            found = list(plan.samples)
        else:

            def decode(folder: Path) -> None:
                prompts = [problem.prompt for problem in plan.problems[0]]
                generating.generate(folder / TRACES_FILE, self.pair, prompts, recipe.traces.max_new_tokens)

            if self._ranks.first:
                plan.traces.run(decode)
            self._ranks.wait()
            found = sources.read([plan.traces.folder / TRACES_FILE])
        if len(found) < 2:
            raise HybridError(f"discovery needs traces to learn from and to measure on; found {len(found)}; give more")
        return found

    @cached_property
    def held_out_traces(self) -> Tensor:
        """[traces] bool: the last ones, at least one, not all."""
        count = len(self.traces)
        kept = count - min(max(1, round(self._recipe.traces.holdout * count)), count - 1)
        return torch.arange(count) >= kept

    @cached_property
    def encoded(self) -> list[Encoded]:
        found = [self.pair.encode(trace) for trace in self.traces]
        if cut := sum(one.cut for one in found):
            log.warning("%d traces go on beyond the models' contexts; what is beyond is left out", cut)
        if silent := sum(not one.sentences for one in found):
            log.warning("%d of %d traces have no thought, or none with a sentence in it", silent, len(found))
        return found

    @cached_property
    def sentences(self) -> list[str]:
        return [sentence.text for one in self.encoded for sentence in one.sentences]

    @cached_property
    def store(self) -> store.Store:
        def collect(folder: Path) -> None:
            store.collect(folder, self.pair, self.traces, self._recipe.sae.layers, self._ranks)
            self._ranks.wait()

        return store.Store(Shards(self._plan.activations.run(collect), len(self.traces)))

    @cached_property
    def owner(self) -> Tensor:
        """[sentences] int64: the trace of each."""
        owner = self.store.sentences()[:, 0]
        for side, wanted, least in (("learn from", False, max(self._recipe.sae.sizes)), ("measure on", True, 2)):
            count = int((self.held_out_traces[owner] == wanted).sum())
            if count < least:
                raise HybridError(
                    f"the traces to {side} must have at least {least} sentences; found {count}; give more or longer "
                    "traces, or other sizes"
                )
        return owner

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Numbers of the sentences to learn from, and of those held out, int64."""
        held_out = self.held_out_traces[self.owner]
        return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]

    def _texts(self, numbers: Tensor) -> list[str]:
        return [self.sentences[i] for i in numbers.tolist()]

    @cached_property
    def sweep(self) -> Sweep:
        recipe = self._recipe

        def make(layer: int) -> Callable[[Path], None]:
            def train(folder: Path) -> None:
                learned, held_out = (self.store.rows(recipe.activation, layer, side) for side in self.sides)
                texts = tuple(map(self._texts, self.sides))
                sweep_layer(layer, learned, held_out, recipe.sae, recipe.seed, texts).save(folder)

            return train

        stages = zip(self._plan.saes, recipe.sae.layers, strict=True)
        return Sweep(tuple(LayerSweep.load(stage.run(make(layer))) for stage, layer in stages))

    @cached_property
    def chosen(self) -> Entry:
        best = self.sweep.best()
        log.info("chosen: %d latents at layer %d (score %.3f)", best.size, best.layer, best.figures.score)
        return best

    @cached_property
    def codes(self) -> Tensor:
        """[sentences, latents] float32."""
        rows = self.store.rows(self._recipe.activation, self.chosen.layer)
        return torch.cat([self.chosen.sae.codes(rows[i : i + READ].float()) for i in range(0, len(rows), READ)])

    @cached_property
    def grades(self) -> Grades | None:
        if self._recipe.judge is None:
            return None

        def ask(folder: Path) -> None:
            from lm_eval_hybrid.discovery.taxonomy import grading
            from lm_eval_hybrid.judging.cache import CachedJudge
            from lm_eval_hybrid.judging.load import load

            # Beside the stages: a reply serves all that ask the same.
            asked = CachedJudge(load(self._recipe.judge), self._plan.workshop.folder)
            (codes, others), (texts, unseen) = (self.codes[side] for side in self.sides), map(self._texts, self.sides)
            category, count = codes.argmax(-1), self._recipe.judge.examples
            shown = {c: naming.exemplars(texts, codes, c, count) for c in category.unique().tolist()}
            found = grading.grade(
                asked,
                texts,
                category,
                unseen,
                others.argmax(-1),
                shown,
                self._recipe.judge,
                self._recipe.seed,
            )
            write_file(folder / GRADES_FILE, found.to_json().encode())

        return Grades.from_json((self._plan.taxonomy.run(ask) / GRADES_FILE).read_bytes())

    @cached_property
    def gates(self) -> Disagreements:
        entry = self.chosen
        told = self._plan.gates.digest  # of the autoencoder as well

        def collect(folder: Path) -> None:
            disagreements.fill(folder, self.pair, self.traces, entry.sae.encoder, entry.layer, told, self._ranks)
            self._ranks.wait()

        return disagreements.load(self._plan.gates.run(collect), len(self.traces))

    @cached_property
    def material(self) -> FitData:
        for side, wanted in (("learn from", False), ("measure on", True)):
            if not bool((self.held_out_traces[self.gates.trace] == wanted).any()):
                raise HybridError(
                    f"the two models must disagree somewhere in the traces to {side}; found no disagreement; choose "
                    "another pair, or give more traces"
                )
        strongest = self.codes.max(-1)
        spans = ((trace, *span) for trace, one in enumerate(self.encoded) for span in one.base_spans())
        segments = [
            Segment(trace, begin, targets, category, number)
            for number, ((trace, begin, targets), category) in enumerate(
                zip(spans, strongest.indices.tolist(), strict=True)
            )
        ]
        model = steered_model(self.pair.base, [one.base for one in self.encoded], self._recipe.vectors.layer)
        latents = self.codes.shape[1]
        return FitData(model, self.gates, segments, strongest.values, self.held_out_traces, latents)

    @cached_property
    def fits(self) -> tuple[FittedVectors, ...]:
        def make(seed: int) -> Callable[[Path], None]:
            return lambda folder: fitting.fit(self.material, self._recipe.vectors, seed, folder).save(folder)

        return tuple(
            FittedVectors.load(stage.run(make(self._recipe.seed + i))) for i, stage in enumerate(self._plan.vectors)
        )

    @cached_property
    def behaviors(self) -> tuple[Behavior, ...]:
        learned, _ = self.sides
        return naming.name(self._texts(learned), self.codes[learned], self.grades)

    def steering(self, fitted: FittedVectors) -> Steering:
        """A fit as decoding takes it; a latent without a behavior steers by the bias alone, as in the bundle."""
        keys = [f"latent-{latent}" for latent in range(len(fitted.vectors))]
        rows = torch.zeros_like(fitted.vectors)
        for behavior in self.behaviors:
            keys[behavior.latent] = behavior.key
            rows[behavior.latent] = fitted.vectors[behavior.latent]
        layer, entry = self._recipe.vectors.layer, self.chosen
        return Steering(layer, fitted.bias, rows, tuple(keys), entry.layer, entry.sae.encoder, fitted.network)

    @cached_property
    def calibration(self) -> Calibration:
        recipe = self._recipe.calibration
        if not recipe.problems:
            best = min(range(len(self.fits)), key=lambda i: min(p.held_out for p in self.fits[i].curves["vectors"]))
            return Calibration(best, recipe.settings[0])
        problems = self._plan.problems[1]
        fits = [self.steering(fitted) for fitted in self.fits]

        def attempt(folder: Path) -> None:
            calibration.calibrate(self.pair, fits, problems, recipe, self._recipe.seed, folder)

        folder = self._plan.calibration.run(attempt)
        found = calibration.calibrate(self.pair, fits, problems, recipe, self._recipe.seed, folder)
        if found.gaps[0].recovered is None:
            log.warning("calibration: %s; what is chosen is the setting that is most often right", found.gaps[0].reason)
        return found

    def _found(self) -> Found:
        calibrated = self.calibration
        return Found(
            traces=self.traces,
            owner=self.owner,
            sentences=self.sentences,
            held_out_traces=self.held_out_traces,
            activations=self.store.rows(self._recipe.activation, self.chosen.layer),
            codes=self.codes,
            sweep=self.sweep,
            chosen=self.chosen,
            grades=self.grades,
            behaviors=self.behaviors,
            gates=self.gates,
            fits=self.fits,
            calibration=calibrated,
            effects=measure_effects(
                self.material.model, self.material.gate_segments(held_out=True), self.fits[calibrated.fit]
            ),
        )
