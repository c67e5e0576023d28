"""Tiny random models, steering and a tokenizer for tests: seeded, built in memory, nothing downloaded.

The weights are large enough that greedy text wanders instead of looping, and the thinking model is the base
plus noise, so that the two agree at some 60 to 80% of the positions.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tests.oracle.naive import NaiveSteering, blocks_of

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox")
VOCABULARY = 72
PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
CONTEXT = 256
SPREAD = 0.3  # standard deviation of the weights: enough for varied text from a width of 32
NOISE = {
    "llama": 0.007,
    "qwen2": 0.007,
    "gpt2": 0.012,
    "gpt_neox": 0.03,
}  # what makes the pair disagree at times


@dataclass(frozen=True)
class Pair:
    """A base and a thinking model (float32, eval mode, CPU) over one vocabulary, and its tokenizer."""

    base: PreTrainedModel
    thinking: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def tiny_config(family: str, width: int = 32, layers: int = 4) -> PretrainedConfig:
    """A config of one of FAMILIES with heads of 8 dimensions, two query heads to a key head where it can."""
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD_ID, "bos_token_id": None, "eos_token_id": EOS_ID}
    heads = width // 8
    if family == "gpt2":
        return GPT2Config(
            **ids, n_embd=width, n_layer=layers, n_head=heads, n_positions=CONTEXT, tie_word_embeddings=False
        )
    common = {
        **ids,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
    }
    if family == "gpt_neox":
        return GPTNeoXConfig(**common)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[family](**common, num_key_value_heads=heads // 2)


def tiny_model(family: str, seed: int, width: int = 32, layers: int = 4) -> PreTrainedModel:
    """A random model, every parameter (biases too) drawn from `seed`."""
    model = AutoModelForCausalLM.from_config(tiny_config(family, width, layers), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if is_norm(name):
                parameter.copy_(1 + 0.1 * noise)
            else:  # large biases would drown the context in a constant
                parameter.copy_(noise * (SPREAD / 3 if name.endswith("bias") else SPREAD))
    return model


def is_norm(name: str) -> bool:
    """Whether a parameter is the scale of a norm, which lies about one and not about zero."""
    return name.endswith("weight") and ("norm" in name or ".ln_" in name)


def related(model: PreTrainedModel, seed: int, noise: float, width: int = 0, layers: int = 0) -> PreTrainedModel:
    """`model` plus Gaussian noise; Llama and Qwen2 may grow wider (by multiples of 16) and deeper.

    A wider model holds the old one in its leading dimensions and nothing but noise in the others. RMS norms
    then see a mean square smaller by old/new, which their scales make good; added layers write only noise.
    """
    config = model.config
    old_width = config.hidden_size
    grown = tiny_config(config.model_type, width or old_width, layers or config.num_hidden_layers)
    copy = AutoModelForCausalLM.from_config(grown, dtype=torch.float32).eval()
    source = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
            if name not in source:
                continue
            old = source[name]
            scale = (old_width / grown.hidden_size) ** 0.5 if is_norm(name) else 1.0
            parameter[tuple(slice(size) for size in old.shape)] += old * scale
    return copy


def tiny_pair(family: str = "llama", seed: int = 0, width: int = 0, layers: int = 0) -> Pair:
    """A pair of `family`; `width` and `layers` are the thinking model's, by default the base's (32, 4)."""
    base = tiny_model(family, seed)
    return Pair(base, related(base, seed + 1000, NOISE[family], width, layers), tiny_tokenizer())


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and a few merges, some with a newline, so that stop strings split tokens; 72 ids."""
    pieces = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", *" \n.?:"]
    merges = [(a, b) for a in "aeiou" for b in "nrst"] + [
        (".", "\n"),
        ("e", "\n"),
        (":", " "),
        ("t", "h"),
        ("?", "\n"),
    ]
    merges += [("\n", "\n"), ("th", "e"), ("an", "d")]
    vocabulary = {piece: index for index, piece in enumerate(pieces + ["".join(merge) for merge in merges])}
    model = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    model.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if len(tokenizer) != VOCABULARY:
        raise ValueError(f"the tiny tokenizer has {len(tokenizer)} ids where the models have {VOCABULARY}")
    return tokenizer


def random_prompts(count: int, seed: int = 0, shortest: int = 3, longest: int = 12) -> list[list[int]]:
    """`count` prompts of different lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    return [
        torch.randint(UNKNOWN_ID + 1, VOCABULARY, (int(length),), generator=generator).tolist() for length in lengths
    ]


def random_steering(
    pair: Pair, layer: int = 1, sae_layer: int = 2, latents: int = 5, seed: int = 0, strength: float = 0.5
) -> NaiveSteering:
    """Random bias and vectors with `strength` times the mean norm of the base's residual after `layer`.

    The SAE is centred on the thinking model's mean residual, so that all its latents win somewhere. The
    coefficient network has 8 hidden units and gives coefficients about one.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base, thinking = residuals(pair.base, layer), residuals(pair.thinking, sae_layer)
    size = float(base.norm(dim=-1).mean())
    directions = torch.nn.functional.normalize(normal(latents + 1, base.shape[-1]), dim=-1) * strength * size
    return NaiveSteering(
        layer=layer,
        bias=directions[0],
        vectors=directions[1:],
        sae_layer=sae_layer,
        mean=thinking.mean(dim=0),
        b_dec=0.05 * normal(thinking.shape[-1]),
        W_e=normal(latents, thinking.shape[-1]),
        b_e=0.05 * normal(latents),
        keys=tuple(f"behavior-{latent}" for latent in range(latents)),
        trunk_weight=normal(8, base.shape[-1]) / size,
        trunk_bias=0.1 * normal(8),
        heads_weight=0.5 * normal(latents, 8),
        heads_bias=torch.ones(latents),
    )


@torch.no_grad()
def residuals(model: PreTrainedModel, layer: int) -> Tensor:
    """Residuals [positions, d] after `layer` on 512 random tokens."""
    generator = torch.Generator().manual_seed(7)
    seen: list[Tensor] = []
    hook = blocks_of(model)[layer].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        model(
            input_ids=torch.randint(UNKNOWN_ID + 1, VOCABULARY, (16, 32), generator=generator),
            use_cache=False,
        )
    finally:
        hook.remove()
    return seen[0].flatten(0, 1)
