"""What a hybrid costs whose models are on an NDIF server: `python -m benchmarks.remote --host URL`.

The embedded pair answers its own problems, on the server and here; the server is any that serves the two folders, such
as the one of `scripts/ndif-local`:

    scripts/ndif-local run -- .venv/bin/python -m benchmarks.remote

- requests per token with one document in flight, of every arm, and the share of tokens at which the models disagree;
- throughput, in tokens per second, of 1, 2, 4 and 8 documents in flight, in turns, over that of one;
- the same tokens as here, or not.

A table is printed; that and everything measured go to benchmarks/results.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.clock import Ratio, take_turns
from benchmarks.report import circumstances
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import ARMS
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import NdifModel, Server

RESULTS = Path(__file__).resolve().parent / "results"
FLIGHTS = (1, 2, 4, 8)
Models = tuple[Any, Any]


@dataclass(frozen=True)
class Run:
    """What one decoding cost.

    Attributes:
        seconds: of waiting for the server, summed over requests.
    """

    tokens: int
    steered: int
    requests: int
    sent: int
    received: int
    seconds: float
    same: bool

    @property
    def per_token(self) -> float:
        """Requests per token."""
        return self.requests / self.tokens


def local(name: str) -> LocalBackend:
    """An embedded model in this process."""
    folder = paths.embedded_dir() / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return LocalBackend(model, AutoTokenizer.from_pretrained(folder))


def remote(server: Server, name: str, here: LocalBackend) -> NdifModel:
    """The same on the server."""
    return NdifModel.at(server, str(paths.embedded_dir() / name), None, here.tokenizer, name)


def requests(models: Models, count: int, tokens: int) -> list[Request]:
    """Word problems, to be answered with so many tokens at most."""
    lines = (paths.embedded_dir() / "gsm8k_embedded.jsonl").read_text().splitlines()[:count]
    texts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    return [
        Request(Prompt(*(model.tokenizer(text)["input_ids"] for model in models)), tokens, ("Question:",))
        for text in texts
    ]


def decode(models: Models, arm: str, asked: Sequence[Request], flight: int) -> list[Generation]:
    """The answers, so many at once."""
    ours = HybridArguments(arm=arm)
    suite = ours.suite()
    decoder = HybridDecoder(*models, Steering.from_suite(suite), ours.policy(suite.manifest.steering))
    answers = dict(decoder.stream(asked, flight))
    return [answers[i] for i in range(len(asked))]


def measured(there: Models, arm: str, asked: Sequence[Request], flight: int, expected: list[Generation]) -> Run:
    """One decoding on the server, and whether its tokens are the expected ones."""
    before = [asdict(model.traffic) for model in there]
    answers = decode(there, arm, asked, flight)
    after = [asdict(model.traffic) for model in there]
    spent = {name: sum(now[name] - then[name] for now, then in zip(after, before, strict=True)) for name in before[0]}
    tokens = [list(answer.tokens) for answer in answers]
    return Run(
        tokens=sum(map(len, tokens)),
        steered=sum(record.steered for answer in answers for record in answer.records),
        requests=spent["requests"],
        sent=spent["sent"],
        received=spent["received"],
        seconds=spent["seconds"],
        same=tokens == [list(answer.tokens) for answer in expected],
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=os.environ.get("NDIF_HOST"), help="of the server (default: $NDIF_HOST)")
    parser.add_argument("--tokens", type=int, default=150, help="of an answer at most (default: 150)")
    parser.add_argument("--documents", type=int, default=8, help="of each throughput (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of throughputs (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder (default: benchmarks/results)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    here = local("base"), local("thinking")
    server = Server.choose(args.host)
    there = tuple(remote(server, name, model) for name, model in zip(("base", "thinking"), here, strict=True))
    two, asked = (requests(here, count, args.tokens) for count in (2, args.documents))
    alone = {arm: measured(there, arm, two, 1, decode(here, arm, two, 2)) for arm in ARMS}
    expected = decode(here, "hybrid", asked, len(asked))
    work = {flight: partial(measured, there, "hybrid", asked, flight, expected) for flight in FLIGHTS}
    seconds, runs = take_turns(work, args.rounds)
    growth = {flight: Ratio.of(seconds[1], seconds[flight]) for flight in FLIGHTS}
    console = Console(width=110, record=True)
    console.print(arms_table(alone), flights_table(runs, seconds, growth))
    args.out.mkdir(exist_ok=True)
    (args.out / "remote.txt").write_text(console.export_text())
    raw = {
        **circumstances(),
        "arms": {arm: asdict(run) for arm, run in alone.items()},
        "flights": {flight: {"seconds": seconds[flight], **asdict(runs[flight])} for flight in FLIGHTS},
    }
    (args.out / "remote.json").write_text(json.dumps(raw, indent=1) + "\n")


def arms_table(runs: dict[str, Run]) -> Table:
    """One document in flight, arm by arm."""
    table = Table(title="one document in flight")
    for name in ("arm", "tokens", "steered", "requests", "requests / token", "kB sent", "kB received", "same tokens"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, run in runs.items():
        table.add_row(
            arm,
            str(run.tokens),
            f"{run.steered / run.tokens:.1%}",
            str(run.requests),
            f"{run.per_token:.3f}",
            f"{run.sent / run.requests / 1000:.1f}",
            f"{run.received / run.requests / 1000:.1f}",
            "yes" if run.same else "no",
        )
    table.caption = "kB: a request."
    return table


def flights_table(runs: dict[int, Run], seconds: dict[int, list[float]], growth: dict[int, Ratio]) -> Table:
    """Throughput of the hybrid."""
    table = Table(title="documents in flight, arm hybrid")
    for name in ("at once", "tokens", "requests / token", "tokens / s", "over one at once", "same tokens"):
        table.add_column(name, justify="right")
    for flight, run in runs.items():
        rate = run.tokens / sorted(seconds[flight])[len(seconds[flight]) // 2]
        table.add_row(
            str(flight),
            str(run.tokens),
            f"{run.per_token:.3f}",
            f"{rate:.1f}",
            str(growth[flight]),
            "yes" if run.same else "no",
        )
    table.caption = Text("Medians of rounds in turns [lowest, highest].")  # no markup
    return table


if __name__ == "__main__":
    main()
