"""A discovery run: makes the stages of a plan that are not done yet, and reads what they hold."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Behavior
from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery.activations import disagreements, store
from lm_eval_hybrid.discovery.activations.disagreements import Disagreements
from lm_eval_hybrid.discovery.activations.store import ActivationRows, ActivationStore
from lm_eval_hybrid.discovery.calibration import CalibrationResult, calibrate
from lm_eval_hybrid.discovery.plan import DiscoveryPlan
from lm_eval_hybrid.discovery.taxonomy import naming
from lm_eval_hybrid.discovery.taxonomy.grading import GradingRecipe, TaxonomyGrades
from lm_eval_hybrid.discovery.taxonomy.sweep import AutoencoderEntry, LayerSweep, Sweep, sweep_layer
from lm_eval_hybrid.discovery.traces import sources
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.discovery.vectors.fitting import FitData, fit
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import steered_model
from lm_eval_hybrid.discovery.vectors.trainer import FittedVectors, VectorEffects, measure_effects

log = logging.getLogger(__name__)
BATCH = 8192  # sentences encoded at once
TRACES_FILE, GRADES_FILE = "traces.jsonl", "grades.json"


@dataclass(frozen=True)
class DiscoveryResult:
    """The result of one run.

    Attributes:
        trace_index: [sentences] int64, the trace of each sentence.
        sentences: their text.
        held_out_traces: [traces] bool.
        activations: [sentences, d_thinking] float32, at the chosen layer.
        codes: [sentences, latents] float32, of the chosen autoencoder.
        fits: one for each seed; `fitted` and `effects` are of the chosen one.
    """

    traces: list[Trace]
    trace_index: Tensor
    sentences: list[str]
    held_out_traces: Tensor
    activations: ActivationRows
    codes: Tensor
    sweep: Sweep
    chosen: AutoencoderEntry
    grades: TaxonomyGrades | None
    behaviors: tuple[Behavior, ...]
    gates: Disagreements
    fits: tuple[FittedVectors, ...]
    calibration: CalibrationResult
    effects: VectorEffects

    @property
    def held_out(self) -> Tensor:
        """[sentences] bool."""
        return self.held_out_traces[self.trace_index]

    @property
    def held_out_gates(self) -> Disagreements:
        return self.gates.of(self.held_out_traces.nonzero()[:, 0])

    @property
    def fitted(self) -> FittedVectors:
        return self.fits[self.calibration.fit]


class DiscoveryRun:
    """Makes the stages of a plan, each when it is first needed.

    Args:
        ranks: this process among those that share the work.
    """

    def __init__(self, plan: DiscoveryPlan, pair: ModelPair, ranks: Ranks = Ranks()) -> None:  # noqa: B008  (frozen)
        self._plan, self.pair, self._ranks = plan, pair, ranks
        self._recipe = plan.recipe

    def run(self, until: str | None = None) -> DiscoveryResult | None:
        """Make all stages, or those up to `until`. Returns None with `until`, and in all processes but the first.

        Raises:
            HybridError: there are too few traces, sentences or disagreements to train on and to hold out.
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
        return self._result() if self._ranks.first else None

    @cached_property
    def traces(self) -> list[Trace]:
        plan = self._plan
        if plan.samples:
            traces = list(plan.samples)
        else:
            if self._ranks.first:
                plan.traces.run(self._generate)
            self._ranks.wait()
            traces = sources.read([plan.traces.folder / TRACES_FILE])
        if len(traces) < 2:
            raise HybridError(
                f"too few traces ({len(traces)}); one is needed to train on and one to hold out; give more"
            )
        return traces

    def _generate(self, folder: Path) -> None:
        prompts = [problem.prompt for problem in self._plan.problems[0]]
        sources.generate(folder / TRACES_FILE, self.pair, prompts, self._recipe.traces.max_new_tokens)

    @cached_property
    def held_out_traces(self) -> Tensor:
        """[traces] bool: the last ones, at least one and not all."""
        count = len(self.traces)
        first = count - min(max(1, round(self._recipe.traces.holdout * count)), count - 1)
        return torch.arange(count) >= first

    @cached_property
    def encoded(self) -> list[EncodedTrace]:
        encoded = [self.pair.encode(trace) for trace in self.traces]
        if cut := sum(one.truncated for one in encoded):
            log.warning("%d traces exceed a model's context; they are cut", cut)
        if silent := sum(not one.sentences for one in encoded):
            log.warning("%d of %d traces have no thought, or none with a sentence in it", silent, len(encoded))
        return encoded

    @cached_property
    def sentences(self) -> list[str]:
        return [sentence.text for one in self.encoded for sentence in one.sentences]

    @cached_property
    def store(self) -> ActivationStore:
        def collect(folder: Path) -> None:
            store.collect(folder, self.pair, self.traces, self._recipe.sae.layers, self._ranks)
            self._ranks.wait()

        return ActivationStore(self._plan.activations.run(collect), len(self.traces))

    @cached_property
    def trace_index(self) -> Tensor:
        """[sentences] int64: the trace of each sentence."""
        index = self.store.sentences()[:, 0]
        for side, held_out, least in (("training", False, max(self._recipe.sae.sizes)), ("held-out", True, 2)):
            count = int((self.held_out_traces[index] == held_out).sum())
            if count < least:
                raise HybridError(
                    f"the {side} traces have {count} sentences, but at least {least} are needed; give more or longer "
                    "traces, or smaller sae.sizes"
                )
        return index

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices of the training sentences and of the held-out ones, int64."""
        held_out = self.held_out_traces[self.trace_index]
        return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]

    def _texts(self, indices: Tensor) -> list[str]:
        return [self.sentences[i] for i in indices.tolist()]

    @cached_property
    def sweep(self) -> Sweep:
        recipe, (train, held_out) = self._recipe, self.split

        def make(layer: int) -> Callable[[Path], None]:
            def sweep(folder: Path) -> None:
                learned, others = (self.store.rows(recipe.activation, layer, side) for side in (train, held_out))
                texts = self._texts(train), self._texts(held_out)
                sweep_layer(layer, learned, others, recipe.sae, recipe.seed, texts).save(folder)

            return sweep

        stages = zip(self._plan.saes, recipe.sae.layers, strict=True)
        return Sweep(tuple(LayerSweep.load(stage.run(make(layer))) for stage, layer in stages))

    @cached_property
    def chosen(self) -> AutoencoderEntry:
        best = self.sweep.best()
        log.info("chosen: %d latents at layer %d (score %.3f)", best.size, best.layer, best.metrics.score)
        return best

    @cached_property
    def codes(self) -> Tensor:
        """[sentences, latents] float32."""
        rows = self.store.rows(self._recipe.activation, self.chosen.layer)
        return torch.cat([self.chosen.sae.codes(rows[i : i + BATCH].float()) for i in range(0, len(rows), BATCH)])

    @cached_property
    def grades(self) -> TaxonomyGrades | None:
        recipe = self._recipe.judge
        if recipe is None:
            return None
        folder = self._plan.taxonomy.run(lambda folder: self._grade(recipe, folder))
        return TaxonomyGrades.from_json((folder / GRADES_FILE).read_bytes())

    def _grade(self, recipe: GradingRecipe, folder: Path) -> None:
        from lm_eval_hybrid.discovery.taxonomy import grading
        from lm_eval_hybrid.judging.load import CachedJudge, load

        # The cache lies beside the stages: another stage that asks the same questions gets the same replies.
        cached = CachedJudge(load(recipe), self._plan.work.folder)
        train, held_out = self.split
        texts, codes = self._texts(train), self.codes[train]
        category = codes.argmax(-1)
        examples = {c: naming.exemplars(texts, codes, c, recipe.examples) for c in category.unique().tolist()}
        others = self.codes[held_out].argmax(-1)
        grades = grading.grade(
            cached, texts, category, self._texts(held_out), others, examples, recipe, self._recipe.seed
        )
        write_file(folder / GRADES_FILE, grades.to_json().encode())

    @cached_property
    def gates(self) -> Disagreements:
        sae, layer = self.chosen.sae, self.chosen.layer
        digest = self._plan.gates.digest  # covers the autoencoder, too

        def collect(folder: Path) -> None:
            disagreements.fill(folder, self.pair, self.traces, sae.encoder, layer, digest, self._ranks)
            self._ranks.wait()

        return disagreements.load(self._plan.gates.run(collect), len(self.traces))

    @cached_property
    def fit_data(self) -> FitData:
        for side, held_out in (("training", False), ("held-out", True)):
            if not bool((self.held_out_traces[self.gates.trace] == held_out).any()):
                raise HybridError(
                    f"the two models never disagree in the {side} traces; choose another pair, or give more traces"
                )
        strongest = self.codes.max(-1)
        spans = ((trace, *span) for trace, one in enumerate(self.encoded) for span in one.base_spans())
        categories = strongest.indices.tolist()
        segments = [
            Segment(trace, begin, targets, category, index)
            for index, ((trace, begin, targets), category) in enumerate(zip(spans, categories, strict=True))
        ]
        model = steered_model(self.pair.base, [one.base_ids for one in self.encoded], self._recipe.vectors.layer)
        latents = self.codes.shape[1]
        return FitData(model, self.gates, segments, strongest.values, self.held_out_traces, latents)

    @cached_property
    def fits(self) -> tuple[FittedVectors, ...]:
        def make(seed: int) -> Callable[[Path], None]:
            return lambda folder: fit(self.fit_data, self._recipe.vectors, seed, folder).save(folder)

        first = self._recipe.seed
        return tuple(FittedVectors.load(stage.run(make(first + i))) for i, stage in enumerate(self._plan.vectors))

    @cached_property
    def behaviors(self) -> tuple[Behavior, ...]:
        train, _ = self.split
        return naming.name(self._texts(train), self.codes[train], self.grades.titled if self.grades else None)

    def steering(self, fitted: FittedVectors) -> Steering:
        """A fit in the form that decoding takes; as in the bundle, latents without a behavior have a zero vector."""
        keys = [f"latent-{latent}" for latent in range(len(fitted.vectors))]
        vectors = torch.zeros_like(fitted.vectors)
        for behavior in self.behaviors:
            keys[behavior.latent] = behavior.key
            vectors[behavior.latent] = fitted.vectors[behavior.latent]
        layer, chosen = self._recipe.vectors.layer, self.chosen
        return Steering(layer, fitted.bias, vectors, tuple(keys), chosen.layer, chosen.sae.encoder, fitted.network)

    @cached_property
    def calibration(self) -> CalibrationResult:
        recipe = self._recipe.calibration
        if not recipe.problems:
            best = min(range(len(self.fits)), key=lambda i: self.fits[i].best_loss)
            return CalibrationResult(best, recipe.settings[0])

        problems = self._plan.problems[1]
        fits = [self.steering(fitted) for fitted in self.fits]

        def run(folder: Path) -> CalibrationResult:
            return calibrate(self.pair, fits, problems, recipe, self._recipe.seed, folder)

        result = run(self._plan.calibration.run(run))  # the second time, the scores are read from the folder
        gap = result.trials[0].gap
        if gap.recovered is None:
            log.warning("calibration: %s; the setting with the most right answers is chosen", gap.reason)
        return result

    def _result(self) -> DiscoveryResult:
        calibration, data = self.calibration, self.fit_data
        return DiscoveryResult(
            traces=self.traces,
            trace_index=self.trace_index,
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
            calibration=calibration,
            effects=measure_effects(data.model, data.gate_segments(held_out=True), self.fits[calibration.fit]),
        )
