"""What discovery asks of models on a server: what it keeps, and no more.

The residual stream crosses at sentences' onsets, as their means, and where the two models disagree; of what a model
says, its choices, and its likeliest tokens where they disagree.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.decoding.tokens.bridge import Choices
from lm_eval_hybrid.discovery.traces.pair import TOP, Encoded, Pair
from lm_eval_hybrid.discovery.traces.sentences import Sentence
from lm_eval_hybrid.models.ndif.model import NdifModel


def at_sentences(
    model: NdifModel, rows: Sequence[Sequence[int]], sentences: Sequence[Sequence[Sentence]], layers: Sequence[int]
) -> dict[str, tuple[Tensor, ...]]:
    """See `store.at_sentences`."""
    spans = [[(sentence.begin, sentence.end) for sentence in some] for some in sentences]
    found = model.sentences({"ids": [list(row) for row in rows], "layers": list(layers), "spans": spans})
    counts = [len(some) for some in sentences]
    return {
        f"{kind}.{layer}": found[kind][i].split(counts) for kind in ("onset", "mean") for i, layer in enumerate(layers)
    }


def choices(pair: Pair, encoded: Sequence[Encoded]) -> list[Tensor]:
    """See `gates._choices`."""
    places = [one.compared for one in encoded]
    given = {
        **_asked([one.base for one in encoded], places, pair.bridge.base_choices),
        "accepted": [[[]] * len(row) for row in places],
        "opens": [[0] * len(row) for row in places],
        "top": 1,
        "layer": 0,
        "residual": False,
    }
    found = pair.base.read(given)["choice"]
    return [row[: len(some)] for row, some in zip(found, places, strict=True)]


def compare(
    pair: Pair, encoded: Sequence[Encoded], ours: Sequence[Tensor], encoder: SparseEncoder, layer: int
) -> Iterator[dict[str, Tensor]]:
    """See `gates._compare`."""
    places = [list(range(one.begin - 1, one.begin - 1 + len(one.compared))) for one in encoded]
    given = {
        **_asked([one.thinking for one in encoded], places, pair.bridge.thinking_choices),
        "accepted": [[pair.bridge.agreeing(choice) for choice in row.tolist()] for row in ours],
        "opens": [[-1] * len(row) for row in places],
        "top": TOP,
        "layer": layer,
        "residual": True,
    }
    found = pair.thinking.read(given)
    category = encoder.category(found["residual"])
    for row, one in enumerate(encoded):
        here = found["rows"] == row
        steps = found["steps"][here]
        yield {
            "column": torch.tensor(one.compared, dtype=torch.int64)[steps],
            "target": pair.bridge.to_base(found["choice"][row, steps]),
            "top": pair.bridge.to_base(found["top_tokens"][here]),
            "top_logprob": found["top_logprobs"][here],
            "category": category[here],
            "places": torch.tensor([len(one.compared)]),
        }


def _asked(rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]], allowed: Choices) -> dict[str, Any]:
    """Of `programs.read`, what both models are asked alike."""
    return {
        # Beyond its last place nothing of a row need be read; but a row needs a token.
        "ids": [list(row[: max(some, default=0) + 1]) for row, some in zip(rows, places, strict=True)],
        "wanted": [list(some) for some in places],
        "spoken": [[-1] * len(some) for some in places],
        "every": True,
        "chosen": True,
        "width": allowed.width,
        "blocked": list(allowed.blocked),
        "sampling": [None] * len(rows),
        "drawn": None,
    }
