"""The stages of a discovery run, in their order: traces, activations, SAEs, taxonomy, gates, vectors, calibration.

`Plan` says which stages there are and what decides each; it needs no models. `Run` makes what is not there yet.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lm_eval_hybrid.behaviors.files import write_file
from lm_eval_hybrid.behaviors.manifest import Behavior
from lm_eval_hybrid.decoding.steering import CoefficientNetwork, Steering
from lm_eval_hybrid.discovery import calibration, effects, gates, generating, naming, sources, store, vectors
from lm_eval_hybrid.discovery.calibration import Calibration
from lm_eval_hybrid.discovery.descent import Point
from lm_eval_hybrid.discovery.effects import Effects
from lm_eval_hybrid.discovery.gates import Gates
from lm_eval_hybrid.discovery.grading import Grades
from lm_eval_hybrid.discovery.pair import Encoded, Pair
from lm_eval_hybrid.discovery.pasts import Pasts
from lm_eval_hybrid.discovery.problems import Problem, draw
from lm_eval_hybrid.discovery.ranks import Ranks
from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.segments import Segment
from lm_eval_hybrid.discovery.shards import Shards
from lm_eval_hybrid.discovery.stages import Stage, Workshop
from lm_eval_hybrid.discovery.sweep import Entry, LayerSweep, Sweep, sweep_layer
from lm_eval_hybrid.discovery.traces import Trace, digest
from lm_eval_hybrid.discovery.vectors import Fitted, Material
from lm_eval_hybrid.errors import HybridError

log = logging.getLogger(__name__)
READ = 8192  # sentences' activations that are encoded at once
TRACES_FILE, GRADES_FILE, VECTORS_FILE = "traces.jsonl", "grades.json", "vectors.safetensors"


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
        return self.workshop.stage("calibration", 1, decides, *self.vectors)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            self.traces,
            self.activations,
            *self.saes,
            self.taxonomy,
            self.gates,
            *self.vectors,
            self.calibration,
        )


@dataclass(frozen=True)
class Found:
    """All that a bundle and its page are made of.

    Attributes:
        traces: that were read.
        owner: [sentences] int64, the trace of each sentence.
        sentences: what they say.
        held_out: [sentences] bool.
        activations: [sentences, d_thinking] float32, at the chosen layer; a `sae.Rows`.
        codes: [sentences, latents] float32.
        fits: one for each seed; `fitted` and `effects` are of the chosen one.
    """

    traces: list[Trace]
    owner: Tensor
    sentences: list[str]
    held_out: Tensor
    activations: Any
    codes: Tensor
    sweep: Sweep
    chosen: Entry
    grades: Grades | None
    behaviors: tuple[Behavior, ...]
    gates: Gates
    fits: tuple[Fitted, ...]
    calibration: Calibration
    effects: Effects

    @property
    def fitted(self) -> Fitted:
        return self.fits[self.calibration.fit]


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
    def held_out(self) -> Tensor:
        """[sentences] bool."""
        return self.held_out_traces[self.owner]

    @cached_property
    def sweep(self) -> Sweep:
        sides = [(self.held_out == side).nonzero()[:, 0] for side in (False, True)]
        recipe = self._recipe

        def make(layer: int) -> Callable[[Path], None]:
            def train(folder: Path) -> None:
                rows = [self.store.rows(recipe.activation, layer, side) for side in sides]
                texts = tuple([self.sentences[i] for i in side.tolist()] for side in sides)
                sweep_layer(layer, *rows, recipe.sae, recipe.seed, texts).save(folder)

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
            from lm_eval_hybrid.discovery import grading, judge
            from lm_eval_hybrid.discovery.judge_cache import CachedJudge

            # Beside the stages: a reply serves all that ask the same.
            asked = CachedJudge(judge.load(self._recipe.judge), self._plan.workshop.folder)
            category = self.codes.argmax(-1)
            sides = [(self.held_out == side).nonzero()[:, 0] for side in (False, True)]
            texts = [[self.sentences[i] for i in side.tolist()] for side in sides]
            found = grading.grade(
                asked,
                texts[0],
                category[sides[0]],
                texts[1],
                category[sides[1]],
                {
                    c: naming.exemplars(texts[0], self.codes[sides[0]], c, self._recipe.judge.examples)
                    for c in category[sides[0]].unique().tolist()
                },
                self._recipe.judge,
                self._recipe.seed,
            )
            write_file(folder / GRADES_FILE, found.to_json().encode())

        return Grades.from_json((self._plan.taxonomy.run(ask) / GRADES_FILE).read_bytes())

    @cached_property
    def gates(self) -> Gates:
        entry = self.chosen
        told = self._plan.gates.digest  # of the autoencoder as well

        def collect(folder: Path) -> None:
            gates.fill(folder, self.pair, self.traces, entry.sae.encoder, entry.layer, told, self._ranks)
            self._ranks.wait()

        return gates.load(self._plan.gates.run(collect), len(self.traces))

    @cached_property
    def material(self) -> Material:
        for side, wanted in (("learn from", False), ("measure on", True)):
            if not bool((self.held_out_traces[self.gates.trace] == wanted).any()):
                raise HybridError(
                    f"the two models must disagree somewhere in the traces to {side}; found no disagreement; choose "
                    "another pair, or give more traces"
                )
        strongest = self.codes.max(-1)
        segments = [
            Segment(trace, begin, targets, category, number)
            for number, ((trace, begin, targets), category) in enumerate(
                zip(_base_spans(self.encoded), strongest.indices.tolist(), strict=True)
            )
        ]
        pasts = Pasts(self.pair.base, [one.base for one in self.encoded], self._recipe.vectors.layer)
        latents = self.codes.shape[1]
        return Material(pasts, self.gates, segments, strongest.values, self.held_out_traces, latents)

    @cached_property
    def fits(self) -> tuple[Fitted, ...]:
        def make(seed: int) -> Callable[[Path], None]:
            return lambda folder: _write(vectors.fit(self.material, self._recipe.vectors, seed, folder), folder)

        return tuple(_read(stage.run(make(self._recipe.seed + i))) for i, stage in enumerate(self._plan.vectors))

    @cached_property
    def behaviors(self) -> tuple[Behavior, ...]:
        learned = (~self.held_out).nonzero()[:, 0]
        return naming.name([self.sentences[i] for i in learned.tolist()], self.codes[learned], self.grades)

    def steering(self, fitted: Fitted) -> Steering:
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
            held_out=self.held_out,
            activations=self.store.rows(self._recipe.activation, self.chosen.layer),
            codes=self.codes,
            sweep=self.sweep,
            chosen=self.chosen,
            grades=self.grades,
            behaviors=self.behaviors,
            gates=self.gates,
            fits=self.fits,
            calibration=calibrated,
            effects=effects.measure(self.material, self.fits[calibrated.fit]),
        )


def _base_spans(encoded: Sequence[Encoded]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Of each sentence its trace, its first column in the base's row, and the base tokens that are to follow."""
    for trace, one in enumerate(encoded):
        for sentence in one.sentences:
            begin, end = one.column(sentence.begin - 1), one.column(sentence.end - 1)
            yield trace, begin, tuple(one.base[begin + 1 : end + 1])


def _write(fitted: Fitted, folder: Path) -> None:
    tensors = {"bias": fitted.bias, "vectors": fitted.vectors}
    if fitted.network is not None:
        tensors |= {f"network.{name}": tensor for name, tensor in asdict(fitted.network).items()}
    curves = {name: [asdict(point) for point in curve] for name, curve in fitted.curves.items()}
    write_file(folder / "curves.json", json.dumps(curves).encode())
    write_file(folder / VECTORS_FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _read(folder: Path) -> Fitted:
    tensors = load_file(folder / VECTORS_FILE)
    named = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    curves = json.loads((folder / "curves.json").read_bytes())
    return Fitted(
        tensors["bias"],
        tensors["vectors"],
        CoefficientNetwork(**named) if named else None,
        {name: [Point(**point) for point in curve] for name, curve in curves.items()},
    )
