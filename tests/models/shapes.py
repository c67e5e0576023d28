"""Configurations of well-known shapes; their models are never loaded."""

from functools import cache

import torch
from transformers import LlamaConfig

from lm_eval_hybrid.models.sizes import ModelFootprint

# hidden, inner, layers, heads, heads of keys and values, vocabulary
_SHAPES = {
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "32b": (5120, 27648, 64, 40, 8, 152064),
    "70b": (8192, 28672, 80, 64, 8, 128256),
}


def config(name: str) -> LlamaConfig:
    hidden, inner, layers, heads, kept, vocabulary = _SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kept,
        vocab_size=vocabulary,
    )


@cache
def size(name: str, dtype: torch.dtype = torch.bfloat16, bits: int | None = None) -> ModelFootprint:
    return ModelFootprint.of(config(name), dtype, bits)
