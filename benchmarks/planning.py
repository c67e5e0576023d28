"""How near `lm-eval-hybrid plan --measure` comes to the run that it plans: `python -m benchmarks.planning`.

Plan and run take processes of their own, so that the run's peak memory is its own. That is what the process grows by
from the moment before the models are loaded, when the harness and its data are there already.
"""

import argparse
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.pairs import smollm2, smollm2_folder
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import model_card
from lm_eval_hybrid.bundles.manifest import Behavior, Manifest, PromptSpec, SaeSpec, SteeringSpec, Training
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.experiment import definition, running
from lm_eval_hybrid.experiment.definition import Experiment

T = TypeVar("T")
_ARMS = ("base", "hybrid", "thinking")
_EVERY = 0.01  # seconds between two looks at the memory


@dataclass(frozen=True)
class Figures:
    """Of one arm, or of all together: generated tokens, seconds of generation, bytes at the peak."""

    tokens: dict[str, int]
    seconds: dict[str, float]
    peak: int


def main() -> None:
    """Plan, run, and print how many times the actual figure the planned one is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="embedded,smollm2", help="of benchmarks.pairs (default: both)")
    parser.add_argument("--documents", type=int, default=16, help="measured of each task (default: 16)")
    parser.add_argument("--limit", type=int, default=100, help="documents of each task that are run (default: 100)")
    parser.add_argument("--batch_sizes", default="1,32", help="of the embedded pair (default: 1,32)")
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    table = Table(box=box.SIMPLE_HEAD, title="planned / actual")
    for name in ("pair", "at once", "arm", "tokens", "seconds", "actual tokens", "actual seconds", "peak memory"):
        table.add_column(name, justify="left" if name in ("pair", "arm") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for number, (pair, experiment) in enumerate(
            _experiments(args.pairs.split(","), sizes, args.limit, Path(folder))
        ):
            planned = _apart(_planned, experiment, args.documents)
            actual = _apart(_actual, experiment, Path(folder) / str(number))
            for arm in experiment.arms:
                cells = (
                    f"{planned.tokens[arm] / actual.tokens[arm]:.2f}",
                    f"{planned.seconds[arm] / actual.seconds[arm]:.2f}",
                    f"{actual.tokens[arm]:,}",
                    f"{actual.seconds[arm]:.1f}",
                )
                table.add_row(pair, experiment.batch_size, arm, *cells, "")
            ratios = [
                f"{sum(getattr(planned, kind).values()) / sum(getattr(actual, kind).values()):.2f}"
                for kind in ("tokens", "seconds")
            ]
            peak = f"{planned.peak / actual.peak:.2f} of {actual.peak / 2**20:,.0f} MiB"
            spent = f"{sum(actual.seconds.values()):.1f}"
            print(f"{pair}, {experiment.batch_size} at once: {planned} planned, {actual}", flush=True)
            table.add_row("", "", "all", *ratios, f"{sum(actual.tokens.values()):,}", spent, peak, end_section=True)
    Console(width=100).print(table)


def _experiments(pairs: list[str], sizes: list[int], limit: int, folder: Path) -> Iterator[tuple[str, Experiment]]:
    if "embedded" in pairs:
        for size in sizes:
            yield "embedded", _experiment("embedded", ["gsm8k_embedded", "math500_embedded"], limit, size, {})
    if "smollm2" in pairs:
        bundle = str(_apart(_smollm2, folder / "smollm2"))
        yield (
            "smollm2",
            _experiment(bundle, ["gsm8k_embedded"], limit // 2, 8, {"max_gen_toks": 48, "until": ["\n\n\n"]}),
        )


def _experiment(bundle: str, tasks: list[str], limit: int, size: int, settings: dict[str, Any]) -> Experiment:
    fields = {"behaviors": bundle, "tasks": tasks, "arms": _ARMS, "limit": limit, "batch_size": str(size)}
    return definition.read({**fields, "gen_kwargs": settings}, "the benchmark")


def _planned(experiment: Experiment, documents: int) -> Figures:
    from lm_eval_hybrid.experiment.estimate.plan import make

    _register()
    found = make(experiment, documents=documents)
    return Figures(
        {estimate.arm: estimate.tokens for estimate in found.estimates},
        {estimate.arm: estimate.seconds or 0.0 for estimate in found.estimates},
        sum(need.total for need in found.needs),
    )


def _actual(experiment: Experiment, folder: Path) -> Figures:
    from lm_eval.tasks import TaskManager

    import lm_eval_hybrid.harness.hybrid_lm  # noqa: F401
    from lm_eval_hybrid.experiment.estimate.documents import requests, tokenizer_of
    from lm_eval_hybrid.experiment.estimate.plan import Models
    from lm_eval_hybrid.models.placement import Machine

    _register()
    models = Models.of(experiment, Machine.local())
    requests(experiment, TaskManager(), tokenizer_of(models.sources["base"], models.model_args))
    with _watched() as peak:
        running.run(experiment, folder)
    tokens, seconds = {}, {}
    for arm in experiment.arms:
        (path,) = running.arm_folder(folder, arm).glob("results_*.json")
        totals = json.loads(path.read_text(encoding="utf-8"))["config"]["hybrid_totals"]
        tokens[arm], seconds[arm] = totals["tokens"], totals["seconds"]
    return Figures(tokens, seconds, peak[0])


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Bytes that this process grows by at its peak, as the one item of a list."""
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [0]

    def look() -> None:
        while not ended.is_set():
            peak[0] = max(peak[0], process.memory_info().rss - before)
            time.sleep(_EVERY)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _register() -> None:
    from lm_eval_hybrid import autoload

    logging.disable(logging.WARNING)
    autoload.register()


def _smollm2(folder: Path) -> Path:
    """Write the pair of `benchmarks.pairs` and a bundle for it into folders. Returns the bundle's."""
    pair = smollm2()
    gguf = next(path for path in smollm2_folder().iterdir() if path.suffix == ".gguf")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(), gguf_file=gguf.name)
    for name, model in (("base", pair.base), ("thinking", pair.thinking)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    steering, encoder = pair.steering, pair.steering.encoder
    assert isinstance(encoder, SparseEncoder)
    tensors = {
        "bias": steering.bias,
        **{f"vector.{key}": vector for key, vector in zip(steering.keys, steering.vectors, strict=True)},
        "sae.encoder.weight": encoder.weight,
        "sae.encoder.bias": encoder.bias,
        "sae.decoder.weight": encoder.weight.T.contiguous(),
        "sae.decoder.bias": encoder.decoder_bias,
        "sae.mean": encoder.mean,
    }
    manifest = Manifest(
        name="smollm2",
        version="1.0.0",
        description="Random vectors for a benchmark",
        license="MIT",
        authors=("benchmark",),
        citation="",
        base=model_card(str(folder / "base"), pair.base.config, tokenizer),
        thinking=model_card(str(folder / "thinking"), pair.thinking.config, tokenizer),
        steering=SteeringSpec(layer=steering.layer, coefficients=(0.5, 1.0), windows=(1,), gate_rate=0.1),
        sae=SaeSpec(layer=steering.layer, latents=len(steering.keys), k=1),
        behaviors=tuple(
            Behavior(key=key, latent=i, title=key, description="", examples=(), tensor=f"vector.{key}")
            for i, key in enumerate(steering.keys)
        ),
        prompt=PromptSpec(thinking="raw"),
        training=Training(recipe="random", seed=0, code_version="0", data="none", data_sha256="0" * 64, holdout={}),
    )
    Bundle(manifest, tensors).save(folder / "bundle")
    return folder / "bundle"


def _apart(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


if __name__ == "__main__":
    main()
