"""How often the two models agree, given how sure the base is: `python -m benchmarks.agreement`.

Along the base's own greedy text, at every token: the margin of its first choice over its second (difference of
logits), and whether the thinking model makes the same choice. What a decoder that drafts can expect.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.noise import predictions
from benchmarks.pairs import PAIRS, Pair
from benchmarks.plain import generate

EDGES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, float("inf"))


def agreement(pair: Pair, prompts: int, tokens: int) -> list[Tensor]:
    """For each of the first prompts [tokens, 2] float32, in order: the base's margin, and 1 where the models agree."""
    ids, mask = generate(pair.base, pair.prompts[:prompts], tokens)
    top = predictions(pair.base, ids, mask, tokens).float().topk(2)
    agreed = predictions(pair.thinking, ids, mask, tokens).argmax(-1) == top.indices[..., 0]
    return list(torch.stack([top.values[..., 0] - top.values[..., 1], agreed.float()], -1).cpu())


def table(found: Sequence[Tensor]) -> Table:
    """Share of agreement for every bin of the margin."""
    margins, agreed = torch.cat(list(found)).unbind(1)
    table = Table(title=f"agreement at {len(margins)} tokens: {float(agreed.mean()):.1%}")
    for column in ("base margin", "tokens", "share", "agree"):
        table.add_column(column, justify="right")
    for low, high in pairwise(EDGES):
        inside = (margins >= low) & (margins < high)
        count = int(inside.sum())
        share = f"{float(agreed[inside].mean()):.1%}" if count else "-"
        table.add_row(f"{low:g} to {high:g}", str(count), f"{count / len(margins):.1%}", share)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="smollm2")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=200, help="to generate after each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", help="file for the raw arrays, a list of one tensor a prompt")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pair = PAIRS[options.pair]()
    found = agreement(pair, options.prompts, options.tokens)
    if options.save:
        torch.save(found, options.save)
    Console().print(table(found))


if __name__ == "__main__":
    main()
