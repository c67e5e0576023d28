"""The memory a model takes, from its configuration alone: a skeleton on the `meta` device, no weights anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_eval_hybrid.models.sources import ModelSource
from lm_eval_hybrid.portable.passes import PASS_TOKENS

_LOGIT_POSITIONS = 17  # whose logits are held at once: the longest draft and one more
_QUANTISED_OVERHEAD = 1.07  # bytes for each byte of quantised weights, their scales included


@dataclass(frozen=True)
class ModelFootprint:
    """The numbers that decide how much memory one model takes.

    Attributes:
        parameters: all weights; tied ones count once.
        linear: weights of linear layers other than the head. bitsandbytes quantises only these.
        largest: weights of the largest part that is never split between devices.
        cached: numbers in the KV cache for each token, over all layers.
        width: activations of each token in a pass, one layer at a time.
        vocabulary: logits of each position.
        dtype: of weights, keys and values.
        bits: of a quantised weight, 8 or 4; None where none is quantised.
    """

    parameters: int
    linear: int
    largest: int
    cached: int
    width: int
    vocabulary: int
    dtype: torch.dtype
    bits: int | None = None

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        dtype: torch.dtype | None = None,
        bits: int | None = None,
        trust_remote_code: bool = False,
    ) -> "ModelFootprint":
        """The size of the causal model with this configuration; `dtype` and `bits` override the configuration's.

        A configuration without a dtype counts as float32, like old checkpoints.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
        return cls(
            parameters=_count(model),
            linear=_linear(model),
            largest=max(map(_count, _unsplit(model)), default=0),
            cached=cached_numbers(config),
            width=6 * text.hidden_size + 3 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
            vocabulary=text.vocab_size,
            dtype=dtype or _dtype(config) or _dtype(text) or torch.float32,
            bits=bits or _quantised_bits(config),
        )

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        plain = self.parameters if self.bits is None else self.parameters - self.linear
        quantised = 0 if self.bits is None else _QUANTISED_OVERHEAD * self.linear * self.bits / 8
        return plain * self.dtype.itemsize + int(quantised)

    @property
    def part(self) -> int:
        """Upper bound in bytes on the largest part that is never split between devices."""
        return self.largest * self.dtype.itemsize

    def cache(self, rows: int, tokens: int) -> int:
        """Bytes of the KV cache of `rows` texts of `tokens` tokens."""
        return rows * tokens * self.cached * self.dtype.itemsize

    def passing(self, rows: int, tokens: int) -> int:
        """Bytes of the largest forward pass: activations, the mask, logits and their copy in float32."""
        read = min(rows * tokens, PASS_TOKENS)
        logits = rows * _LOGIT_POSITIONS * self.vocabulary * (self.dtype.itemsize + torch.float32.itemsize)
        return read * (self.width + tokens) * self.dtype.itemsize + logits


def model_footprint(source: ModelSource, theirs: Mapping[str, Any]) -> ModelFootprint:
    """The size of a model in a folder or on the hub (whose configuration is fetched), as it would be loaded.

    Args:
        theirs: the user's arguments for HFLM.

    Raises:
        HybridError: its configuration cannot be loaded, or is not a causal model's.
    """
    trust = bool(theirs.get("trust_remote_code"))
    files = {name: theirs[name] for name in ("subfolder", "gguf_file") if theirs.get(name)}
    with source.loading(needs_tokenizer=False):
        config = AutoConfig.from_pretrained(source.name, revision=source.revision, trust_remote_code=trust, **files)
        dtype = theirs.get("dtype") or "auto"
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        return ModelFootprint.of(config, dtype, requested_bits(theirs), trust)


def requested_bits(theirs: Mapping[str, Any]) -> int | None:
    """Bits of a weight where HFLM's arguments ask for quantisation."""
    return 4 if theirs.get("load_in_4bit") else 8 if theirs.get("load_in_8bit") else None


def cached_numbers(config: PretrainedConfig) -> int:
    """Numbers in a causal model's KV cache for each token, over all layers. Sliding windows are ignored."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width


def _dtype(config: PretrainedConfig) -> torch.dtype | None:
    # A configuration that was not read from a file may name it.
    return getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype


def _quantised_bits(config: PretrainedConfig) -> int | None:
    """Bits of a weight in a checkpoint that is already quantised, by whatever method."""
    settings = getattr(config, "quantization_config", None) or {}
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    if settings.get("quant_method") == "fp8":
        return 8
    return requested_bits(settings) or settings.get("bits")


def _linear(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head)
    return sum(map(_count, linear))


def _unsplit(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that stay on one device: layers, and the embeddings."""
    layers = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in layers or isinstance(module, nn.Embedding)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
