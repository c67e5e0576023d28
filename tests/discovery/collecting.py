"""The pair of the fixture `studied`, and activations and disagreements collected in a separate process:
`python -m tests.discovery.collecting TRACES FOLDER`."""

import sys
from pathlib import Path

import torch

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import disagreements, store
from lm_eval_hybrid.discovery.traces import sources
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.models.local import LocalBackend
from tests.tiny_system import WIDTH, tiny_model, tiny_tokenizer

LAYERS = (2, 0)
SAE_LAYER = 1


def related_pair() -> ModelPair:
    """The pair of the fixture `studied`."""
    base, thinking = tiny_model(0), tiny_model(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in thinking.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    return ModelPair(*(LocalBackend(model, tiny_tokenizer()) for model in (base, thinking)), PromptSpec(thinking="raw"))


def random_encoder() -> SparseEncoder:
    """Five latents of a residual as wide as `studied`'s."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((WIDTH,), (WIDTH,), (5, WIDTH), (5,))
    mean, decoder_bias, weight, bias = (torch.randn(shape, generator=generator) * 0.1 for shape in shapes)
    return SparseEncoder(mean, decoder_bias, weight, bias)


def main(traces: str, folder: str) -> None:
    store.SHARD_TRACES, store.PASS_TOKENS = 1, 200  # many shards
    pair, ranks = related_pair(), Ranks.from_environment()
    read = sources.read([Path(traces)])
    try:
        store.collect(Path(folder) / "store", pair, read, LAYERS, ranks)
        disagreements.fill(Path(folder) / "gates", pair, read, random_encoder(), SAE_LAYER, "encoder-1", ranks)
    except HybridError as error:
        raise SystemExit(f"error: {error}") from None
    ranks.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
