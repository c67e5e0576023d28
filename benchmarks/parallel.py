"""Two processes against one, on two cores with one thread each: `python -m benchmarks.parallel`.

The embedded pair answers both of its tasks, arm hybrid, by `lm_eval` in one process and by `torchrun` in two, in turns.
Compared are documents per second of decoding, and of the whole command with its start; and whether every document is
there once with the same tokens.

A table is printed; that and everything measured go to benchmarks/results.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.clock import Ratio
from benchmarks.report import circumstances

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = "gsm8k_embedded,math500_embedded"


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        decoding: seconds of the slowest process's decoding; whole: of the command.
        tokens: by (task, document).
    """

    processes: int
    decoding: float
    whole: float
    tokens: dict[tuple[str, int], list[int]]


def run(processes: int, limit: int, batch: int) -> Run:
    """Answer so many documents of each task."""
    launch = (
        ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"] if processes > 1 else []
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, *launch, "-m", "lm_eval", "--model", "hybrid", "--tasks", TASKS),
            *("--limit", str(limit), "--batch_size", str(batch), "--output_path", folder, "--log_samples"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        begun = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        whole = time.perf_counter() - begun
        (path,) = Path(folder).rglob("results_*.json")
        totals = json.loads(path.read_text())["config"]["hybrid_totals"]
        tokens = {}
        for file in path.parent.glob("tokens_*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                tokens[file.name.split("_2")[0], line["doc_id"]] = [record["token"] for record in line["records"]]
    return Run(processes, totals["seconds"], whole, tokens)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200, help="documents of each task (default: 200, all)")
    parser.add_argument("--batch", type=int, default=1, help="answers at once in each process (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder (default: benchmarks/results)")
    args = parser.parse_args()
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for turn in range(args.rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            runs[processes].append(run(processes, args.limit, args.batch))
    one, two = runs[1], runs[2]
    decoding = Ratio.of([each.decoding for each in one], [each.decoding for each in two])
    whole = Ratio.of([each.whole for each in one], [each.whole for each in two])
    same = all(each.tokens == one[0].tokens for each in one + two)
    table = Table(title=f"two processes / one, {len(one[0].tokens)} documents, {args.batch} at once in each")
    table.add_column("documents per second")
    table.add_column("ratio", justify="right")
    table.add_row("of decoding", str(decoding))
    table.add_row("of the whole command", str(whole))
    table.add_row("same tokens in every run", "yes" if same else "no")
    console = Console(width=100, record=True)
    console.print(table)
    args.out.mkdir(exist_ok=True)
    (args.out / "parallel.txt").write_text(console.export_text())
    seconds = {
        processes: [{"decoding": each.decoding, "whole": each.whole} for each in some]
        for processes, some in runs.items()
    }
    raw = {
        **circumstances(),
        "options": {"limit": args.limit, "batch": args.batch, "rounds": args.rounds},
        "seconds": seconds,
        "same": same,
    }
    (args.out / "parallel.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
