"""The architectures of the tiny models: a config for each, shrunken, with what sets it apart still at work.

Windows of attention are shorter than the prompts, soft caps lie below the scores, and rope is scaled within
the texts that tests make: a decoder that overlooked one of them would write other tokens.
"""

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "llama3", "qwen3", "mistral", "gemma2", "gemma3", "opt", "phi")
VOCABULARY = 72
PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
CONTEXT = 256
HEAD = 8  # dimensions of an attention head
WINDOW = 6  # positions that a sliding layer sees, a token's own included

# Pairs of dimensions turn once in 6, 20, 63 and 199 positions; Llama 3 leaves alone what turns in less than
# 32 / 4, slows down by the factor what turns in more than 32 / 1, and blends in between.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 8,
}
CLASSES = {
    "llama": LlamaConfig,
    "llama3": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "gpt_neox": GPTNeoXConfig,
    "gpt2": GPT2Config,
    "opt": OPTConfig,
    "phi": PhiConfig,
}


def tiny_config(family: str, width: int = 32, layers: int = 4) -> PretrainedConfig:
    """A config of one of FAMILIES with heads of 8 dimensions, two query heads to a key head where it can."""
    settings = {
        # said even where None or the default: Gemma and OPT have token ids of their own and tie their embeddings
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD_ID,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "tie_word_embeddings": False,
        **shape(family, width, layers),
        **peculiarities(family, layers),
    }
    return CLASSES[family](**settings)


def shape(family: str, width: int, layers: int) -> dict[str, Any]:
    """Sizes, by the names that the family has for them."""
    heads = width // HEAD
    if family == "gpt2":
        return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": CONTEXT}
    inner = {"ffn_dim": 4 * width} if family == "opt" else {"intermediate_size": 2 * width}
    sizes = {
        "hidden_size": width,
        **inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
    }
    if family in ("gpt_neox", "opt"):
        return sizes
    return sizes | {"num_key_value_heads": heads // 2}


def peculiarities(family: str, layers: int) -> dict[str, Any]:
    """What sets the family apart beside its code."""
    if family == "llama3":
        return {"rope_parameters": dict(LLAMA3_ROPE)}
    if family == "qwen3":
        return {"head_dim": HEAD}
    if family == "mistral":
        return {"head_dim": HEAD, "sliding_window": WINDOW}
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 3.0}
        return {**caps, **sliding(layers)}
    return sliding(layers) if family == "gemma3" else {}


def sliding(layers: int) -> dict[str, Any]:
    """Gemma's attention: every other layer slides, the first among them; scores as large as the other models'."""
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": WINDOW, "layer_types": kinds}


def family_of(config: PretrainedConfig) -> str:
    """The member of FAMILIES that a config of tiny_config's belongs to."""
    if config.model_type == "gemma3_text":
        return "gemma3"
    scaled = config.model_type == "llama" and config.rope_parameters["rope_type"] == "llama3"
    return "llama3" if scaled else config.model_type


def norm_centre(config: PretrainedConfig) -> float:
    """The weight with which a norm leaves sizes alone: Gemma's norms scale by one plus their weight."""
    return 0.0 if config.model_type.startswith("gemma") else 1.0
