"""What the sweep of autoencoders costs and finds: `python -m benchmarks.sweep`.

- cost: a layer's whole sweep, by default of ten sizes with three seeds each on 200,000 rows of 1,536 random clusters,
  k-means and Gaussian mixtures included, in seconds;
- together: the same autoencoders trained one by one / in one stack, in turns, on fewer steps;
- found: on traces that the embedded thinking model writes here, the size and the layer that are chosen, and how well
  the categories agree with the generator's behaviors, which the sweep never sees (adjusted mutual information).

A table is printed; that and everything measured go to benchmarks/results.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.clock import Ratio, seconds, take_turns
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.discovery.activations import store
from lm_eval_hybrid.discovery.activations.store import ActivationRows, ActivationStore, JoinedRows
from lm_eval_hybrid.discovery.taxonomy.autoencoders import SaeRecipe, train_many
from lm_eval_hybrid.discovery.taxonomy.sweep import AutoencoderEntry, Sweep, sweep_layer
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.problems import ProblemSource, draw
from lm_eval_hybrid.discovery.traces.sources import generate
from lm_eval_hybrid.embedded.notebooks import BEHAVIORS, OPENINGS
from lm_eval_hybrid.models.local import LocalBackend

RESULTS = Path(__file__).resolve().parent / "results"
TRUE = len(BEHAVIORS)
EMBEDDED = SaeRecipe(layers=(0, 1, 2, 3), sizes=(4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20))
CLUSTERS = 24
_QUICK = {"rows": 2000, "width": 32, "sizes": [5, 8], "seeds": 2, "steps": 20, "alone_steps": 10, "traces": 40}


@dataclass(frozen=True)
class Embedded:
    """What the sweep reads of the embedded pair's traces, and what it does not: the generator's behaviors.

    Attributes:
        sides: ascending int64: the sentences to learn from, and those held out.
        truth: of each held-out sentence its behavior.
    """

    store: ActivationStore
    sides: tuple[Tensor, Tensor]
    sentences: tuple[list[str], list[str]]
    truth: list[str]

    def rows(self, layer: int) -> tuple[ActivationRows, ActivationRows]:
        """The residuals at the onsets of the sentences on both sides."""
        learned, held_out = (self.store.rows("onset", layer, side) for side in self.sides)
        return learned, held_out


def embedded(folder: Path, count: int, layers: Sequence[int]) -> Embedded:
    """Decodes `count` traces and reads them; the last fifth is held out."""
    base, thinking = (_backend(role) for role in ("base", "thinking"))
    pair = ModelPair(base, thinking, PromptSpec(thinking="raw"))
    prompts = [problem.prompt for problem in draw([ProblemSource(data="embedded")], count, seed=0)]
    traces = generate(folder / "traces.jsonl", pair, prompts, max_new_tokens=400)
    opened = store.collect(folder / "activations", pair, traces, layers)
    texts = [sentence.text.strip() for trace in traces for sentence in pair.encode(trace).sentences]
    held_out = opened.sentences()[:, 0] >= count - count // 5
    sides = tuple(side.nonzero()[:, 0] for side in (~held_out, held_out))
    sentences = tuple([texts[i] for i in side.tolist()] for side in sides)
    return Embedded(opened, sides, sentences, [_behavior(text) for text in sentences[1]])


def agreement(entry: AutoencoderEntry, read: Embedded) -> float:
    """Adjusted mutual information of held-out sentences' categories with the generator's behaviors."""
    from sklearn.metrics import adjusted_mutual_info_score

    found = entry.sae.encoder.category(read.rows(entry.layer)[1][:])
    return float(adjusted_mutual_info_score(read.truth, found.tolist()))


def clusters(rows: int, width: int) -> Tensor:
    """[rows, width] float32: around centres drawn at random, off the origin, as far from them as they are apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, width, generator=generator) + 2
    return torch.randn(rows, width, generator=generator).add_(centres[torch.arange(rows) % CLUSTERS])


def cost(points: Tensor, recipe: SaeRecipe) -> tuple[float, Sweep]:
    """Seconds of one layer's sweep, with every tenth row held out."""
    held_out = torch.arange(len(points)) % 10 == 0
    learned, other = (side.nonzero()[:, 0] for side in (~held_out, held_out))
    rows = [JoinedRows([points], side) for side in (learned, other)]
    sentences = tuple([chr(ord("a") + i % CLUSTERS) for i in side.tolist()] for side in (learned, other))
    spent, layer = seconds(lambda: sweep_layer(0, *rows, recipe, 0, sentences))
    return spent, Sweep((layer,))


def together(points: Tensor, recipe: SaeRecipe, rounds: int) -> Ratio:
    """Seconds of training one by one / of training all in one stack."""

    def alone() -> None:
        for size in recipe.sizes:
            for seed in range(recipe.seeds):
                train_many(points, replace(recipe, sizes=(size,), seeds=1), seed)

    taken, _ = take_turns({"alone": alone, "stack": lambda: train_many(points, recipe, 0)}, rounds)
    return Ratio.of(taken["alone"], taken["stack"])


def table(options: argparse.Namespace, spent: float, ratio: Ratio, best: AutoencoderEntry, agreed: float) -> Table:
    """What was measured, beside what is wanted."""
    sizes, size = options.sizes, f"{options.rows:,} x {options.width:,}"
    table = Table("sweep of autoencoders", "measured", "wanted", title=f"{options.threads} threads")
    name = f"{len(sizes)} sizes ({min(sizes)} to {max(sizes)}) x {options.seeds} seeds on {size}, baselines included"
    table.add_row(name, f"{spent:.0f} s", "under 600 s")
    table.add_row("autoencoders: trained one by one / in one stack", str(ratio), "above 1")
    table.add_row(f"embedded pair, {TRUE} behaviors: chosen size", str(best.size), f"{TRUE - 2} to {TRUE + 2}")
    table.add_row("embedded pair: chosen layer", str(best.layer), "")
    table.add_row("embedded pair: adjusted mutual information", f"{agreed:.3f}", "at least 0.8")
    return table


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(range(5, 51, 5)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--alone-steps", type=int, default=40, help="of each training, one by one and in a stack")
    parser.add_argument("--rounds", type=int, default=3, help="in each of which both are run once")
    parser.add_argument("--traces", type=int, default=300, help="of the embedded pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table and measurements")
    parser.add_argument("--quick", action="store_true", help="small, in seconds: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
    if min(options.rows, options.width, options.seeds, options.steps, options.alone_steps, options.rounds) < 1:
        parser.error("all numbers go from 1")
    if options.traces < 10:
        parser.error("traces go from 10")
    return options


def main(arguments: Sequence[str] | None = None) -> tuple[float, Ratio, AutoencoderEntry, float]:
    """Measure, print and write; what was measured is returned, too."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    log = Console(stderr=True)
    log.log(f"{options.rows:,} rows of {options.width:,} are drawn and swept")
    points = clusters(options.rows, options.width)
    recipe = SaeRecipe(layers=(0,), sizes=tuple(options.sizes), seeds=options.seeds, steps=options.steps)
    spent, found = cost(points, recipe)
    log.log(f"{spent:.0f} s; one by one against in a stack")
    shorter = replace(recipe, steps=options.alone_steps, tolerance=0.0)
    ratio = together(points[: max(recipe.batch, len(points) // 10)].clone(), shorter, options.rounds)
    del points
    log.log(f"the embedded pair: {options.traces} traces")
    torch.set_num_threads(1)  # its matrices are tiny: more threads would only wait for one another
    with tempfile.TemporaryDirectory() as folder:
        read = embedded(Path(folder), options.traces, EMBEDDED.layers)
        recipe = replace(EMBEDDED, steps=options.steps)
        layers = [sweep_layer(layer, *read.rows(layer), recipe, 0, read.sentences) for layer in recipe.layers]
        best = Sweep(tuple(layers)).best()
        agreed = agreement(best, read)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = table(options, spent, ratio, best, agreed)
    Console().print(shown)
    with open(options.out / "sweep.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=140).print(shown)
    content = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "seconds": spent,
        "alone_over_stack": asdict(ratio),
        "clusters": found.rows(),
        "embedded": {"rows": Sweep(tuple(layers)).rows(), "size": best.size, "layer": best.layer, "ami": agreed},
    }
    (options.out / "sweep.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return spent, ratio, best, agreed


def _backend(role: str) -> LocalBackend:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_hybrid.models.sources import ModelSource

    name = ModelSource.named(role, f"embedded:{role}").name
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return LocalBackend(model.eval(), AutoTokenizer.from_pretrained(name))


def _behavior(sentence: str) -> str:
    """What the generator meant: each behavior has an opening of its own."""
    return next(name for name, opening in OPENINGS.items() if f" {sentence}".startswith(f"{opening} "))


if __name__ == "__main__":
    main()
