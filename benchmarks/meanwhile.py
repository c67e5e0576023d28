"""The base drafting on while the thinking model reads, against taking turns: `python -m benchmarks.meanwhile`.

Two devices are two cores here, a thread each model. Both ways answer the same prompts in turns, and all tokens are
compared.

A table is printed; that and everything measured go to benchmarks/results.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clock import Ratio, take_turns
from benchmarks.contest import COEFFICIENTS
from benchmarks.pairs import PAIRS, Pair
from benchmarks.report import circumstances
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.models.local import LocalBackend

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Measured:
    """Of one batch size: seconds of each round, and answers with the same tokens."""

    batch: int
    turns: list[float]
    meanwhile: list[float]
    same: int


def measure(pair: Pair, batch: int, tokens: int, rounds: int) -> Measured:
    """Both ways, in turns."""
    prompts = [Prompt(ids, ids) for ids in pair.prompts[:batch]]

    def decode(meanwhile: bool) -> list[Generation]:
        backends = [LocalBackend(model, pair.tokenizer) for model in (pair.base, pair.thinking)]
        decoder = HybridDecoder(*backends, pair.steering, Policy(COEFFICIENTS, (1,)), overlap=meanwhile)
        return decoder.generate(prompts, tokens)

    ways = {way: (lambda way=way: decode(way)) for way in (False, True)}
    seconds, answers = take_turns(ways, rounds)
    same = sum(a.tokens == b.tokens for a, b in zip(answers[False], answers[True], strict=True))
    return Measured(batch, seconds[False], seconds[True], same)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="smollm2", help="(default: smollm2)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="(default: 1 4 16)")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turns (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder (default: benchmarks/results)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pair = PAIRS[args.pair]()
    found = [measure(pair, batch, args.tokens, args.rounds) for batch in args.batches]
    table = Table("batch", "taking turns / drafting on", "same answers", title=f"{args.pair}: seconds")
    for measured in found:
        table.add_row(str(measured.batch), str(Ratio.of(measured.turns, measured.meanwhile)), str(measured.same))
    Console().print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    whole = {**circumstances(), "pair": args.pair, "tokens": args.tokens, "measured": [asdict(m) for m in found]}
    (args.out / "meanwhile.json").write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
