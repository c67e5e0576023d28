"""What an epoch of the likelihood recipe costs, ours against naive ones: `python -m benchmarks.vectors`.

- ours: all sentences of a trace side by side over its past, of which the residual and the upper layers' keys and values
  are kept; gradients through the layers above the steered one. The first epoch computes the pasts, later ones have
  them;
- hook: a sequence a sentence, its whole prefix read each time, a forward hook that steers; gradients from there on;
- naive: the same, and gradients through the whole stack, from the embeddings on, as where nothing is known of it.

At a third and at two thirds of the depth of a random Llama of 30 million parameters and of the embedded base, on the
CPU, in float32. Times in turns; memory each in a process of its own, the most resident over what was before the epoch:
with the kept pasts, without the weights. That all ways find the same loss and gradient is measured, too. A table is
printed; that and everything measured go to benchmarks/results.
"""

import argparse
import gc
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.clock import Ratio, take_turns
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.problems import ProblemSource, draw
from lm_eval_hybrid.discovery.traces.sources import generate
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import LocalSteeredModel, SteeringVectors
from lm_eval_hybrid.discovery.vectors.trainer import TrainConfig, TrainTask, VectorTrainer
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.sources import ModelSource

RESULTS = Path(__file__).resolve().parent / "results"
LLAMA = LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=9,
    num_attention_heads=8,
    num_key_value_heads=4,
)
LATENTS, PROMPT, SENTENCE = 10, 32, 16
WAYS = ("ours", "ours again", "hook", "naive")
_RATE = 0.01
_QUICK = {"traces": 1, "length": 64, "rounds": 1}


@dataclass(frozen=True)
class Work:
    """Sentences to learn from, and the model: all that an epoch needs, as plain data.

    Attributes:
        model: `random` or `embedded`.
        layer: after which vectors are added.
        rows: of tokens.
    """

    model: str
    layer: int
    rows: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Cost:
    """Of each way: seconds of every round, bytes at most, mean loss, gradient [latents, d] of the step."""

    work: Work
    seconds: dict[str, list[float]]
    peaks: dict[str, int]
    losses: dict[str, float]
    gradients: dict[str, Tensor]

    @property
    def difference(self) -> float:
        """Of the gradients from the naive one, relative to its largest value."""
        naive = self.gradients["naive"]
        return max(float((g - naive).abs().max() / naive.abs().max()) for g in self.gradients.values())


def backend_of(name: str) -> LocalBackend:
    """The random model, always the same one, or one of the embedded pair: `base` or `thinking`."""
    source = ModelSource.named("base", f"embedded:{'base' if name == 'random' else name}").name
    tokenizer = AutoTokenizer.from_pretrained(source)
    if name != "random":
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LLAMA)  # reads no text: any tokenizer will do
    return LocalBackend(model.eval().requires_grad_(False), tokenizer)


def random_work(traces: int, length: int) -> tuple[list[tuple[int, ...]], list[Segment]]:
    """Traces of random tokens: a prompt of PROMPT, then sentences of SENTENCE."""
    drawn = random.Random(0)
    rows = [tuple(drawn.choices(range(LLAMA.vocab_size), k=length)) for _ in range(traces)]
    begins = range(PROMPT - 1, length - SENTENCE, SENTENCE)
    places = [(row, begin) for row in range(traces) for begin in begins]
    return rows, [
        Segment(row, begin, rows[row][begin + 1 : begin + 1 + SENTENCE], number % LATENTS, number)
        for number, (row, begin) in enumerate(places)
    ]


def embedded_work(traces: int) -> tuple[list[tuple[int, ...]], list[Segment]]:
    """Traces that the embedded thinking model writes here, as the base reads them."""
    pair = ModelPair(backend_of("base"), backend_of("thinking"), PromptSpec(thinking="raw"))
    prompts = [problem.prompt for problem in draw([ProblemSource(data="embedded")], traces, seed=0)]
    with tempfile.TemporaryDirectory() as folder:
        found = generate(Path(folder, "traces.jsonl"), pair, prompts, max_new_tokens=400)
    encoded = [pair.encode(trace) for trace in found]
    spans = [
        (row, one.base_column(s.begin - 1), one.base_column(s.end - 1))
        for row, one in enumerate(encoded)
        for s in one.sentences
    ]
    return [tuple(one.base_ids) for one in encoded], [
        Segment(row, begin, tuple(encoded[row].base_ids[begin + 1 : end + 1]), number % LATENTS, number)
        for number, (row, begin, end) in enumerate(spans)
    ]


def vectors_of(backend: LocalBackend) -> Tensor:
    """[LATENTS, d]: where the epoch begins."""
    noise = torch.randn(LATENTS, backend.config.hidden_size, generator=torch.Generator().manual_seed(1))
    return (0.1 * noise).requires_grad_()


def ours(base: LocalSteeredModel, segments: Sequence[Segment]) -> tuple[float, Tensor]:
    """An epoch of one step: (mean loss, gradient). Besides, one sentence is held out and read twice."""
    vectors = vectors_of(base.prefixes.base)
    way = SteeringVectors(torch.zeros(base.width), vectors)
    task = TrainTask(
        name="vectors",
        parameters={"vectors": vectors},
        rates={"vectors": _RATE},
        train=segments,
        held_out=segments[:1],
        loss=lambda some: (batch.outputs[0].loss for batch in base.forward(some, [way])),
    )
    config = TrainConfig(epochs=1, batch=len(base.prefixes.rows), patience=1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        curve = VectorTrainer(task, config, Path(folder)).run()
        # After Adam's first step its mean of gradients is a tenth of the one there was.
        mean = load_file(Path(folder, "vectors.checkpoint.safetensors"))["adam.vectors.exp_avg"]
    return curve[1].loss, 10 * mean


def plainly(backend: LocalBackend, work: Work, whole: bool) -> tuple[float, Tensor]:
    """The same, a sequence a sentence; `whole`: with gradients through the whole stack."""
    model: PreTrainedModel = backend.model._module
    vectors, total = vectors_of(backend), 0.0
    optimizer = torch.optim.Adam([vectors], lr=_RATE)
    tokens = sum(len(segment.targets) for segment in work.segments)
    for segment in work.segments:
        ids = torch.tensor([work.rows[segment.row][: segment.end]])
        embedded = model.get_input_embeddings()(ids).requires_grad_(whole)

        def steer(module: Module, inputs: tuple, output: Tensor, segment: Segment = segment) -> Tensor:
            after = output[:, segment.begin :] + vectors[segment.category]
            return torch.cat([output[:, : segment.begin], after], 1)

        handle = model.model.layers[work.layer].register_forward_hook(steer)
        try:
            logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=len(segment.targets)).logits[0]
        finally:
            handle.remove()
        loss = F.cross_entropy(logits, torch.tensor(segment.targets), reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    gradient = vectors.grad.clone()
    optimizer.step()
    return total, gradient


def epochs(backend: LocalBackend, work: Work) -> dict[str, Callable[[], tuple[float, Tensor]]]:
    """An epoch in each of WAYS; `ours again` has the pasts."""
    kept = LocalSteeredModel(backend, work.rows, work.layer)
    return {
        "ours": lambda: ours(LocalSteeredModel(backend, work.rows, work.layer), work.segments),
        "ours again": lambda: ours(kept, work.segments),
        "hook": lambda: plainly(backend, work, whole=False),
        "naive": lambda: plainly(backend, work, whole=True),
    }


def peak(work: Work, way: str, threads: int) -> int:
    """In a process of its own: bytes resident at most during an epoch, over those before."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    backend = backend_of("random" if work.model == "random" else "base")
    # A short one first: it brings in whatever is imported late.
    epochs(backend, Work(work.model, work.layer, work.rows[:1], work.segments[:1]))[way]()
    run = epochs(backend, work)[way]
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    return _resident("VmHWM") - before


def measure(work: Work, rounds: int, threads: int) -> Cost:
    """Times here, memory in other processes (of Linux)."""
    backend = backend_of("random" if work.model == "random" else "base")
    runs = epochs(backend, work)
    runs["ours again"]()  # computes the pasts
    taken, found = take_turns(runs, rounds)
    peaks = {}
    context = get_context("forkserver")  # a clean process that has imported what all need
    context.set_forkserver_preload(["benchmarks.vectors"])
    for way in WAYS if sys.platform == "linux" else ():
        if way != "ours again":  # it holds what the first epoch does
            with ProcessPoolExecutor(1, context) as pool:
                peaks[way] = pool.submit(peak, work, way, threads).result()
    losses, gradients = ({way: result[i] for way, result in found.items()} for i in (0, 1))
    return Cost(work, taken, peaks, losses, gradients)


def table(costs: Sequence[Cost], threads: int) -> Table:
    """A column for each model and layer."""
    table = Table("an epoch of the likelihood recipe", title=f"{threads} threads")
    for cost in costs:
        table.add_column(f"{cost.work.model}, layer {cost.work.layer}", justify="right")

    def row(name: str, value: Callable[[Cost], str]) -> None:
        table.add_row(name, *(value(cost) for cost in costs))

    def times(above: str, below: str, cost: Cost) -> str:
        return str(Ratio.of(cost.seconds[above], cost.seconds[below]))

    def memory(above: str, cost: Cost) -> str:
        return f"{cost.peaks[above] / cost.peaks['ours']:.2f}" if cost.peaks else "-"

    row("traces, sentences", lambda cost: f"{len(cost.work.rows)}, {len(cost.work.segments)}")
    row("ours, first epoch: seconds", lambda cost: f"{min(cost.seconds['ours']):.2f}")
    for way in ("naive", "hook"):
        row(f"time: {way} / ours, first epoch", partial(times, way, "ours"))
        row(f"time: {way} / ours, later epochs", partial(times, way, "ours again"))
    row("ours: peak memory, MB", lambda cost: f"{cost.peaks['ours'] / 1e6:.0f}" if cost.peaks else "-")
    for way in ("naive", "hook"):
        row(f"peak memory: {way} / ours", partial(memory, way))
    row("loss: ours, naive", lambda cost: f"{cost.losses['ours']:.5f}, {cost.losses['naive']:.5f}")
    row("gradient: largest difference", lambda cost: f"{cost.difference:.1e}")
    return table


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=2, help="of each model")
    parser.add_argument("--length", type=int, default=256, help="tokens of a random trace")
    parser.add_argument("--rounds", type=int, default=2, help="in each of which every way is run once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table and measurements")
    parser.add_argument("--quick", action="store_true", help="small, in seconds: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
    if min(options.traces, options.rounds, options.threads) < 1:
        parser.error("traces, rounds and threads go from 1")
    if not PROMPT + SENTENCE <= options.length <= LLAMA.max_position_embeddings:
        parser.error(f"length goes from {PROMPT + SENTENCE} to {LLAMA.max_position_embeddings}")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Cost]:
    """Measure, print and write; what was measured is returned, too."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    log, costs = Console(stderr=True), []
    depth = {"random": LLAMA.num_hidden_layers, "embedded": len(backend_of("base").layers)}
    material = {"random": random_work(options.traces, options.length), "embedded": embedded_work(options.traces)}
    for model, (rows, segments) in material.items():
        for third in (1,) if options.quick else (1, 2):
            layer = round(third * depth[model] / 3) - 1  # that many layers are not run again
            log.log(f"{model}, layer {layer} of {depth[model]}: {len(segments)} sentences")
            work = Work(model, layer, tuple(rows), tuple(segments))
            costs.append(measure(work, options.rounds, options.threads))
    shown = table(costs, options.threads)
    Console().print(shown)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "vectors.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=140).print(shown)
    content = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "costs": [_written(cost) for cost in costs],
    }
    (options.out / "vectors.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return costs


def _written(cost: Cost) -> dict:
    work = {"model": cost.work.model, "layer": cost.work.layer, "sentences": len(cost.work.segments)}
    ratios = {
        f"{above} / {below}": asdict(Ratio.of(cost.seconds[above], cost.seconds[below]))
        for above in ("naive", "hook")
        for below in ("ours", "ours again")
    }
    measured = {"seconds": cost.seconds, "peaks": cost.peaks, "losses": cost.losses, "ratios": ratios}
    return {**work, **measured, "gradient_difference": cost.difference}


def _resident(field: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
