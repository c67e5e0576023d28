"""How much memory a model takes, from its configuration alone: a skeleton on the `meta` device, no weights anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils_hf import get_dtype
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_eval_hybrid.models.sources import Source

_PASS = 8192  # tokens of a forward pass at most, as models/local.py has it
_DRAFT = 17  # positions whose logits are kept at once: the longest draft and one more
_SCALES = 1.07  # bytes for a byte of quantised weights: what scales them comes on top


@dataclass(frozen=True)
class Size:
    """What one model needs.

    Attributes:
        parameters: all of them; tied ones once.
        linear: those in linear layers but the head. bitsandbytes quantises these only: embeddings, norms and the head
            stay as they are.
        largest: parameters of the largest part that is never split between devices.
        past: numbers that are kept of a token: its keys and values in all layers.
        width: numbers that a token takes in a pass, a layer at a time.
        vocabulary: logits of a position.
        dtype: of weights, keys and values.
        bits: of a quantised weight, 8 or 4; None where none is quantised.
    """

    parameters: int
    linear: int
    largest: int
    past: int
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
    ) -> "Size":
        """Of the causal model with this configuration. `dtype` and `bits`: in place of what the configuration says.

        A configuration without a dtype is taken for one in float32, as checkpoints of old are.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
        return cls(
            parameters=_count(model),
            linear=_linear(model),
            largest=max(map(_count, _whole(model)), default=0),
            past=numbers_a_token(config),
            width=6 * text.hidden_size + 3 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
            vocabulary=text.vocab_size,
            dtype=dtype or config.dtype or text.dtype or torch.float32,
            bits=bits or _bits(config),
        )

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        kept = self.parameters if self.bits is None else self.parameters - self.linear
        quantised = 0 if self.bits is None else _SCALES * self.linear * self.bits / 8
        return kept * self.dtype.itemsize + int(quantised)

    @property
    def part(self) -> int:
        """Bytes of the largest part that is never split between devices, at most."""
        return self.largest * self.dtype.itemsize

    def cache(self, rows: int, tokens: int) -> int:
        """Bytes of keys and values, of `rows` texts of `tokens` tokens."""
        return rows * tokens * self.past * self.dtype.itemsize

    def passing(self, rows: int, tokens: int) -> int:
        """Bytes that the largest pass takes and gives back: activations, the mask, logits and these in float32."""
        read = min(rows * tokens, _PASS)
        logits = rows * _DRAFT * self.vocabulary * (self.dtype.itemsize + torch.float32.itemsize)
        return read * (self.width + tokens) * self.dtype.itemsize + logits


def size_of(source: Source, theirs: Mapping[str, Any]) -> Size:
    """The size of a model in a folder or on the hub, as it would be loaded; of the hub its configuration is fetched.

    Args:
        theirs: arguments of HFLM.

    Raises:
        HybridError: its configuration cannot be had, or is of no causal model.
    """
    trust = bool(theirs.get("trust_remote_code"))
    files = {name: theirs[name] for name in ("subfolder", "gguf_file") if theirs.get(name)}
    with source.loading(needs_tokenizer=False):
        config = AutoConfig.from_pretrained(source.name, revision=source.revision, trust_remote_code=trust, **files)
        named = get_dtype(theirs.get("dtype") or "auto")
        dtype = named if isinstance(named, torch.dtype) else None
        return Size.of(config, dtype, bits(theirs), trust)


def bits(theirs: Mapping[str, Any]) -> int | None:
    """Of a weight, where HFLM's arguments say that weights are to be quantised."""
    return 4 if theirs.get("load_in_4bit") else 8 if theirs.get("load_in_8bit") else None


def numbers_a_token(config: PretrainedConfig) -> int:
    """Numbers that a causal model keeps of every token it has read: keys and values. Sliding windows are ignored."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width


def _bits(config: PretrainedConfig) -> int | None:
    """Of a checkpoint that is quantised already, by whatever method."""
    settings = getattr(config, "quantization_config", None) or {}
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    if settings.get("quant_method") == "fp8":
        return 8
    return bits(settings) or settings.get("bits")


def _linear(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    return sum(
        _count(module) for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    )


def _whole(model: PreTrainedModel) -> list[nn.Module]:
    """Modules that stay on one device: layers, and the embeddings."""
    layers = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in layers or isinstance(module, nn.Embedding)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
