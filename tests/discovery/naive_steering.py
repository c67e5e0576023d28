"""A naive implementation of steering (a forward hook, one segment per pass), and the FitData of a tiny pair."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import disagreements
from lm_eval_hybrid.discovery.vectors.fitting import FitData
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import LocalSteeredModel
from lm_eval_hybrid.discovery.vectors.trainer import FittedVectors, VectorEffects, measure_effects
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import Studied
from tests.oracle import models
from tests.oracle.naive import blocks_of

LAYER, WIDTH, LATENTS = 1, 32, 4
SILENT = 3  # a latent that is never the strongest


def naive_logits(model: PreTrainedModel, layer: int, row: Sequence[int], begin: int, steering: Tensor) -> Tensor:
    """Logits [n, vocab] after the columns from `begin` on, with steering [n, d] added to them after a layer."""
    end = begin + len(steering)

    def add(module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat([output[:, :begin], output[:, begin:] + steering], 1)

    handle = blocks_of(model)[layer].register_forward_hook(add)
    try:
        return model(input_ids=torch.tensor([list(row[:end])]), use_cache=False).logits[0, begin:]
    finally:
        handle.remove()


def naive_residual(model: PreTrainedModel, layer: int, row: Sequence[int]) -> Tensor:
    """[n, d]: the residual stream after a layer."""
    seen: list[Tensor] = []
    handle = blocks_of(model)[layer].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([list(row)]), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def backend_of(family: str) -> LocalBackend:
    return LocalBackend(models.tiny_model(family, 0), models.tiny_tokenizer())


def rows_of_tokens() -> list[list[int]]:
    """Rows of different lengths, some longer than a sliding window and one of a single token."""
    return [*models.random_prompts(3, seed=1, shortest=8, longest=30), [5]]


def some_segments(rows: Sequence[Sequence[int]]) -> list[Segment]:
    """For every row: single columns, among them the first and the last, the whole row, and overlapping segments."""
    found: list[Segment] = []
    for row, n in enumerate(map(len, rows)):
        for begin, end in {(0, 1), (n - 1, n), (0, n), (n // 2, n // 2 + 1), (n // 3, n - n // 4), (n // 3, n)}:
            targets = tuple(
                10 + column % 4 for column in range(begin, end)
            )  # the same in all rows, so that they generalize
            found.append(Segment(row, begin, targets, len(found) % LATENTS, len(found)))
    return found


def fit_data_of(studied: Studied, folder: Path) -> FitData:
    """Gates and sentences of the tiny pair's traces under a random encoder; the last three traces are held out."""
    generator = torch.Generator().manual_seed(2)
    bias = torch.zeros(LATENTS)
    bias[SILENT] = -1e9
    encoder = SparseEncoder(
        torch.zeros(WIDTH), torch.zeros(WIDTH), torch.randn(LATENTS, WIDTH, generator=generator), bias
    )
    disagreements.fill(folder, studied.pair, studied.traces, encoder, LAYER, "random")
    encoded = [studied.pair.encode(trace) for trace in studied.traces]
    spans = [(trace, s.begin - 1, s.end - 1, s.text) for trace, one in enumerate(encoded) for s in one.sentences]
    sentences = [
        Segment(trace, begin, tuple(encoded[trace].base_ids[begin + 1 : end + 1]), _kind(text), index)
        for index, (trace, begin, end, text) in enumerate(spans)
    ]
    activation = torch.rand(len(sentences), generator=generator)
    held_out = torch.arange(len(encoded)) >= len(encoded) - 3
    base = LocalSteeredModel(studied.base, [one.base_ids for one in encoded], LAYER)
    return FitData(base, disagreements.load(folder, len(encoded)), sentences, activation, held_out, LATENTS)


def _kind(text: str) -> int:
    """A category that depends on the text, so that held-out sentences have it, too."""
    return 0 if "%" in text else 1 if "F" in text else 2


def effects_of(data: FitData, fitted: FittedVectors) -> VectorEffects:
    """The effects at held-out gates."""
    return measure_effects(data.model, data.gate_segments(held_out=True), fitted)
