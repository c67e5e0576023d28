"""What the benchmark shows: one table of ratios, a JSON file with every raw second, a picture of the growth."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from benchmarks.clock import Ratio
from benchmarks.contest import COEFFICIENTS, Contest
from benchmarks.noise import SEED

_PASSES = {
    "step": "a cached step / in plain PyTorch",
    "traced": "the same through nnsight / in plain PyTorch",
    "candidates": "all candidates / in plain PyTorch",
    "window": "window of all positions: recomputed / ours",
}


CAPTION = (
    f"Medians of rounds [lowest, highest]; {len(COEFFICIENTS)} coefficients, window 1, greedy. The naive loop is "
    "sampled: steps at some lengths, with the gate open and shut, summed over our text; where it says so, it is run "
    "whole. What is sampled has no rounds: its spread is ours. Memory: one run in a process of its own."
)


@dataclass
class PairResult:
    """Everything measured of one pair.

    Attributes:
        noise: of a made thinking model; None where it is not made.
        passes: single passes, after `passes_at` tokens: ratios, and all seconds.
    """

    pair: str
    noise: float | None
    contests: list[Contest]
    passes: dict[str, Ratio]
    passes_at: int
    passes_seconds: dict[str, list[float]]


def table(results: Sequence[PairResult], lengths: Sequence[int]) -> Table:
    """All ratios: medians of the rounds, and in brackets what they lay between."""
    table = Table(
        title="hybrid decoding; times are given in units of ours", caption=Text(CAPTION), caption_justify="left"
    )
    table.add_column("pair", no_wrap=True)
    table.add_column("new tokens", no_wrap=True)
    for n in lengths:
        table.add_column(str(n), justify="right", no_wrap=True)
    for result in results:
        for contest in result.contests:
            rows = {name: cells for name, cells in _rows(contest).items() if any(cells)}
            for i, (name, cells) in enumerate(rows.items()):
                table.add_row("" if i else f"{contest.pair}, batch {contest.batch}", name, *cells)
            table.add_section()
        for i, (key, name) in enumerate(_PASSES.items()):
            cells = [str(result.passes[key]) if n == result.passes_at else "" for n in lengths]
            table.add_row("" if i else f"{result.pair}, one pass", name, *cells)
        table.add_section()
    return table


def _rows(contest: Contest) -> dict[str, list[str]]:
    """Cells by length, by name of the row."""

    def row(cell: Callable[[int], Any]) -> list[str]:
        return [str(cell(n)) for n in contest.lengths]

    def whole(n: int) -> Any:
        return contest.against_ours("naive", n) if ("naive", n) in contest.seconds else ""

    def same(n: int) -> str:
        shares = [contest.same[way, n] for way in ("lockstep", "naive") if (way, n) in contest.same]
        return ", ".join(f"{equal}/{all_}" for equal, all_ in shares)

    return {
        "naive loop": row(contest.naive_against_ours),
        "naive loop, run whole": row(whole),
        "lockstep: caches and plain hooks": row(lambda n: contest.against_ours("lockstep", n)),
        "ours": row(lambda n: "1"),
        "base alone, generate": row(lambda n: contest.against_ours("base", n)),
        "thinking alone, generate": row(lambda n: contest.against_ours("thinking", n)),
        "ours / (base + thinking / 4)": row(contest.against_models),
        "ours a token / at the shortest": row(contest.growth),
        "peak memory / (weights + caches)": row(lambda n: f"{contest.memory[n]:.2f}" if n in contest.memory else "-"),
        "share of tokens steered": row(lambda n: f"{contest.steered[n]:.1%}"),
        "same answers: lockstep, naive loop": row(same),
    }


def circumstances() -> dict[str, Any]:
    """Machine and versions."""
    packages = ("lm-eval-hybrid", "torch", "transformers", "nnsight")
    return {
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def write_json(path: Path, results: Sequence[PairResult], options: dict[str, Any]) -> None:
    """Everything, with what is needed to repeat it."""
    content = {
        **circumstances(),
        "options": options,
        "coefficients": COEFFICIENTS,
        "seed": SEED,
        "pairs": [
            {
                "pair": result.pair,
                "noise": result.noise,
                "passes": {"after": result.passes_at, "seconds": result.passes_seconds},
                "contests": [_contest(contest) for contest in result.contests],
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _contest(contest: Contest) -> dict[str, Any]:
    return {
        "batch": contest.batch,
        "lengths": [
            {
                "tokens": n,
                "seconds": {way: s for (way, m), s in contest.seconds.items() if m == n},
                "naive_seconds_sampled": contest.naive[n],
                "steered": contest.steered[n],
                "same": {way: pair for (way, m), pair in contest.same.items() if m == n},
                "memory_over_weights_and_caches": contest.memory.get(n),
            }
            for n in contest.lengths
        ],
    }


def _processor() -> str:
    """The model's name, which only Linux tells in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
