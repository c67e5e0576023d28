"""What a fit's steps cost whose base is on an NDIF server: `python -m benchmarks.remote_fit --host URL`.

Sentences of the embedded thinking model's traces, so many traces a step, on the server and here, in turns:

    scripts/ndif-local run -- .venv/bin/python -m benchmarks.remote_fit

Compared are seconds and gradients. A table is printed; that and everything measured go to benchmarks/results.
"""

import argparse
import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.clock import Ratio, take_turns
from benchmarks.remote import RESULTS, local, remote
from benchmarks.report import circumstances
from benchmarks.vectors import LATENTS, embedded_work, vectors_of
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import (
    LocalSteeredModel,
    RemoteSteeredModel,
    SteeredModel,
    SteeringVectors,
)
from lm_eval_hybrid.models.ndif.client import Server

LAYER = 1


def gradient(base: SteeredModel, begin: Tensor, segments: list[Segment]) -> Tensor:
    """Of a step from `begin`, [LATENTS, d]."""
    vectors = begin.clone().requires_grad_()
    for batch in base.forward(segments, [SteeringVectors(torch.zeros(base.width), vectors)]):
        batch.outputs[0].loss.backward()
    return vectors.grad


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=os.environ.get("NDIF_HOST"), help="of the server (default: $NDIF_HOST)")
    parser.add_argument("--traces", type=int, default=16, help="of a step (default: 16)")
    parser.add_argument("--rounds", type=int, default=10, help="steps here and there (default: 10)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder (default: benchmarks/results)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, segments = embedded_work(args.traces)
    backend = local("base")
    model = remote(Server.choose(args.host), "base", backend)
    bases = {"here": LocalSteeredModel(backend, rows, LAYER), "there": RemoteSteeredModel(model, rows, LAYER)}
    begin = vectors_of(backend).detach()
    gradient(bases["here"], begin, segments)  # its pasts are kept
    before = asdict(model.traffic)
    seconds, found = take_turns(
        {name: partial(gradient, base, begin, segments) for name, base in bases.items()}, args.rounds
    )
    spent = {name: (value - before[name]) / args.rounds for name, value in asdict(model.traffic).items()}
    apart = float((found["here"] - found["there"]).norm() / found["here"].norm())
    table = Table(
        "a step", "", title=f"{args.traces} traces, {len(segments)} sentences, {LATENTS} vectors", show_header=False
    )
    table.add_row("requests", f"{spent['requests']:.0f}")
    table.add_row("kB there, back", f"{spent['sent'] / 1000:.1f}, {spent['received'] / 1000:.1f}")
    table.add_row("seconds there", f"{sorted(seconds['there'])[len(seconds['there']) // 2]:.2f}")
    table.add_row("there / here, where pasts are kept", str(Ratio.of(seconds["there"], seconds["here"])))
    table.add_row("gradients' relative difference", f"{apart:.1e}")
    Console().print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    whole = {**circumstances(), "traces": args.traces, "seconds": seconds, "step": spent, "difference": apart}
    (args.out / "remote_fit.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
