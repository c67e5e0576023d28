"""Tiny random models, steering and a tokenizer for tests: seeded, built in memory, nothing downloaded.

The weights are large enough that greedy text wanders instead of looping, and the thinking model is the base
plus noise, so that the two agree at some 60 to 80% of the positions.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# tests import from here what they need of the architectures
from tests.oracle.architectures import CONTEXT as CONTEXT
from tests.oracle.architectures import EOS_ID as EOS_ID
from tests.oracle.architectures import FAMILIES as FAMILIES
from tests.oracle.architectures import PAD_ID as PAD_ID
from tests.oracle.architectures import UNKNOWN_ID, VOCABULARY, family_of, norm_centre, tiny_config
from tests.oracle.naive import NaiveSteering, blocks_of

SPREAD = 0.3  # standard deviation of the weights: enough for varied text from a width of 32
SHARPNESS = {"gemma2": 2.0, "gemma3": 2.0, "qwen3": 2.0, "opt": 1.5, "phi": 1.5}  # of attention, else text loops
NOISE = {
    "llama": 0.007,
    "qwen2": 0.007,
    "gpt2": 0.012,
    "gpt_neox": 0.03,
    "llama3": 0.007,
    "qwen3": 0.005,
    "mistral": 0.007,
    "gemma2": 0.008,
    "gemma3": 0.008,
    "opt": 0.005,
    "phi": 0.007,
}  # what makes the pair disagree at times
TUNE = 0.7  # of a mixed pair: large enough that two models mostly agree on the next token

GROWING = ("llama", "llama3", "qwen2", "qwen3", "mistral")  # without biases of norms, or norms after the layers


@dataclass(frozen=True)
class Pair:
    """A base and a thinking model (float32, eval mode, CPU) over one vocabulary, and its tokenizer."""

    base: PreTrainedModel
    thinking: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def tiny_model(family: str, seed: int, width: int = 32, layers: int = 4) -> PreTrainedModel:
    """A random model, every parameter (biases too) drawn from `seed`."""
    model = AutoModelForCausalLM.from_config(tiny_config(family, width, layers), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    sharpness, centre = SHARPNESS.get(family, 1.0), norm_centre(model.config)
    scaled = attention_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = sharpness if name in scaled else 1.0
            if is_norm(name):
                parameter.copy_((1 + 0.1 * noise) * scale - (1 - centre))
            else:  # large biases would drown the context in a constant
                parameter.copy_(noise * (SPREAD / 3 if name.endswith("bias") else SPREAD) * scale)
            if name.endswith("fc2.weight"):  # as would activations that are mostly positive
                parameter -= parameter.mean(dim=1, keepdim=True)
    return model


def is_norm(name: str) -> bool:
    """Whether a parameter is the scale of a norm, which lies about one and not about zero."""
    return name.endswith("weight") and ("norm" in name or ".ln_" in name)


def attention_names(model: PreTrainedModel) -> set[str]:
    """The parameters that set the sizes of queries and keys: their norms where they have some."""
    names = [name for name, _ in model.named_parameters()]
    norms = {name for name in names if "q_norm" in name or "k_norm" in name}
    return norms or {name for name in names if "q_proj" in name or "k_proj" in name}


def related(model: PreTrainedModel, seed: int, noise: float, width: int = 0, layers: int = 0) -> PreTrainedModel:
    """`model` plus Gaussian noise; members of GROWING may grow wider (by multiples of 16) and deeper.

    A wider model holds the old one in its leading dimensions and nothing but noise in the others. RMS norms
    then see a mean square smaller by old/new, which their scales make good; added layers write only noise.
    """
    config, family = model.config, family_of(model.config)
    size = (width or config.hidden_size, layers or config.num_hidden_layers)
    if size != (config.hidden_size, config.num_hidden_layers) and family not in GROWING:
        raise ValueError(f"{family} cannot grow: only {', '.join(GROWING)} can")
    copy = AutoModelForCausalLM.from_config(tiny_config(family, *size), dtype=torch.float32).eval()
    source = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
            if name not in source:
                continue
            old = source[name]
            # the norms of Qwen3's heads stay as wide as they are
            scale = (old.shape[0] / parameter.shape[0]) ** 0.5 if is_norm(name) else 1.0
            parameter[tuple(slice(size) for size in old.shape)] += old * scale
    return copy


def tiny_pair(family: str = "llama", seed: int = 0, width: int = 0, layers: int = 0) -> Pair:
    """A pair of `family`; `width` and `layers` are the thinking model's, by default the base's (32, 4)."""
    base = tiny_model(family, seed)
    return Pair(base, related(base, seed + 1000, NOISE[family], width, layers), tiny_tokenizer())


def mixed_pair(base_family: str, thinking_family: str, seed: int = 0, width: int = 48, layers: int = 6) -> Pair:
    """A pair of two families, (32, 4) and (`width`, `layers`): strangers but for a tune that both follow.

    The tune names one successor for each token and runs through all that are not special before it repeats.
    Each model's own layers make it leave the tune at times: the two disagree there, and texts wander.
    """
    generator = torch.Generator().manual_seed(seed)
    order = UNKNOWN_ID + 1 + torch.randperm(VOCABULARY - UNKNOWN_ID - 1, generator=generator)
    successors = order[torch.arange(VOCABULARY) % len(order)]  # of the special tokens: any
    successors[order] = order.roll(-1)
    base, thinking = tiny_model(base_family, seed), tiny_model(thinking_family, seed + 1000, width, layers)
    for model in (base, thinking):
        attune(model, successors)
    return Pair(base, thinking, tiny_tokenizer())


@torch.no_grad()
def attune(model: PreTrainedModel, successors: Tensor) -> None:
    """Embed each token as its successor's row of the head, TUNE times as large as what the layers add."""
    embedding = model.get_input_embeddings()
    embedding.weight.copy_(model.get_output_embeddings().weight[successors])
    own = embedding(some_tokens()).flatten(0, 1)  # Gemma's are larger than their weights
    added = residuals(model, model.config.num_hidden_layers - 1) - own
    embedding.weight.mul_(TUNE * added.norm(dim=-1).mean() / own.norm(dim=-1).mean())


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
        heads_bias=torch.full((latents,), 0.5),
    )


@torch.no_grad()
def residuals(model: PreTrainedModel, layer: int) -> Tensor:
    """Residuals [positions, d] after `layer` on 512 random tokens."""
    seen: list[Tensor] = []
    hook = blocks_of(model)[layer].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        model(input_ids=some_tokens(), use_cache=False)
    finally:
        hook.remove()
    return seen[0].flatten(0, 1)


def some_tokens() -> Tensor:
    """512 random tokens in 16 rows, the same each time."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(UNKNOWN_ID + 1, VOCABULARY, (16, 32), generator=generator)
