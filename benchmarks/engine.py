"""How fast hybrid decoding is: `make bench`, or `python -m benchmarks.engine`.

Every figure is a ratio of things measured in one run of this script, in turns:

- the naive loop of the tests, which recomputes everything (sampled where it would take too long, and said so);
- lockstep: both models cached, steered by plain hooks, written for this comparison (`lockstep.py`);
- ours;
- `generate` of each model alone, which no hybrid can beat.

All write exactly as many tokens after the same prompts, greedily. Besides: single passes against plain PyTorch, and
peak memory. A table is printed; that, every raw second and a picture go to benchmarks/results.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging

from benchmarks.contest import COEFFICIENTS, Arena
from benchmarks.memory import memory
from benchmarks.pairs import PAIRS, PROMPTS, Pair
from benchmarks.passes import compare
from benchmarks.report import PairResult, table, write_json
from lm_eval_hybrid.models.local import LocalBackend

RESULTS = Path(__file__).resolve().parent / "results"
_WIDTH = 140
_QUICK = {"pair": ["embedded"], "lengths": [8, 24], "batches": [1, 3], "naive_lengths": [8], "rounds": 1}


def run(pair: Pair, options: argparse.Namespace, console: Console) -> PairResult:
    """Measure everything of one pair."""
    arena = Arena(pair)
    contests, cost = [], None
    for batch in options.batches:
        console.log(f"{pair.name}, batch {batch}: {', '.join(map(str, options.lengths))} tokens")
        whole = [n for n in options.naive_lengths if n in options.lengths and batch == options.batches[0]]
        contest = arena.contest(batch, options.lengths, options.rounds, options.budget, whole)
        cost = cost or arena.sample(options.lengths)
        arena.price(contest, cost)
        contests.append(contest)
    console.log(f"{pair.name}: memory")
    peaks = memory(arena.traced, [(batch, n) for batch in options.batches for n in options.lengths])
    for contest in contests:
        contest.memory = {n: peak for (batch, n), peak in peaks.items() if batch == contest.batch}
    console.log(f"{pair.name}: single passes")
    middle = options.lengths[len(options.lengths) // 2]
    text = arena.text(middle)
    steering = (pair.steering.bias + pair.steering.vectors[0]).to(pair.base.device)
    steering = torch.tensor(COEFFICIENTS, device=pair.base.device)[:, None] * steering
    backend = LocalBackend(arena.traced.base, pair.tokenizer)
    ratios, seconds = compare(pair.base, backend, text, pair.steering.layer, steering, options.rounds)
    return PairResult(pair.name, pair.noise, contests, ratios, middle, seconds)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pairs = ["embedded", "smollm2", *(["7b"] if torch.cuda.is_available() else [])]
    parser.add_argument("--pair", nargs="+", choices=PAIRS, default=pairs)
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256, 1024], help="new tokens")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help=f"answers at once, up to {PROMPTS}")
    parser.add_argument("--rounds", type=int, default=3, help="in each of which everything is run once")
    parser.add_argument("--budget", type=float, default=1200, help="seconds, after which no other round is begun")
    parser.add_argument(
        "--naive-lengths", nargs="*", type=int, default=[64], help="lengths at which the naive loop is run whole, too"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table, raw seconds and picture")
    parser.add_argument(
        "--quick", action="store_true", help="the embedded pair in seconds: whether it runs, not how fast"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
    options.lengths, options.batches = sorted(set(options.lengths)), sorted(set(options.batches))
    if not 1 <= options.batches[0] <= options.batches[-1] <= PROMPTS or options.lengths[0] < 1 or options.rounds < 1:
        parser.error(f"batches go from 1 to {PROMPTS}; lengths and rounds from 1")
    return options


def main(arguments: Sequence[str] | None = None) -> list[PairResult]:
    """Measure, print and write; what was measured is returned, too."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    log = Console(stderr=True)
    results = []
    for name in options.pair:
        log.log(f"{name}: making the pair")
        results.append(run(PAIRS[name](), options, log))
    options.out.mkdir(parents=True, exist_ok=True)
    shown = table(results, options.lengths)
    wide = Console()
    wide.width = max(wide.width, _WIDTH)
    wide.print(shown)
    with open(options.out / "engine.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=_WIDTH).print(shown)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(options.out / "engine.json", results, settings)
    _plot(options.out, results, log)
    return results


def _plot(folder: Path, results: Sequence[PairResult], log: Console) -> None:
    try:
        from benchmarks.plot import plot
    except ImportError:
        log.log("no picture: matplotlib is not installed (pip install -e '.[bench]')", markup=False)
        return
    for result in results:
        plot(folder / f"engine-{result.pair}.png", result.contests)


if __name__ == "__main__":
    main()
