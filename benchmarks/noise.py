"""A thinking model made of a base model and noise, and steering for the two: random, seeded."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from benchmarks.plain import generate, hooked, left_padded, positions_of
from lm_eval_hybrid.decoding.steering import SparseEncoder, Steering

SEED = 0
_STRENGTH = 0.15  # of a steering vector, relative to the residual's norm
_LATENTS = 8
_FIRST, _TRIES, _CLOSE = 0.1, 6, 0.002


def noisy_copy(
    base: PreTrainedModel, prompts: Sequence[Sequence[int]], disagreement: float, tokens: int
) -> tuple[PreTrainedModel, float]:
    """A copy whose choices differ from the base's at this share of its greedy text, and the noise that took.

    The share grows with the noise, nearly in proportion: from a first guess that is followed, and of all tries the
    closest is taken.
    """
    noisy = copy.deepcopy(base)
    ids, mask = generate(base, prompts, tokens)
    expected = choices(base, ids, mask, tokens)
    scale, tries = _FIRST, []
    for _ in range(_TRIES):
        add_noise(noisy, base, scale)
        share = float((choices(noisy, ids, mask, tokens) != expected).float().mean())
        tries.append((abs(share - disagreement), scale))
        if tries[-1][0] < _CLOSE:
            break
        scale *= min(max(disagreement / max(share, 1e-6), 0.25), 4.0)
    noise = min(tries)[1]
    add_noise(noisy, base, noise)
    return noisy, noise


@torch.no_grad()
def add_noise(noisy: PreTrainedModel, base: PreTrainedModel, scale: float) -> None:
    """Make the layers' matrices of `noisy` those of `base` plus noise of `scale` times each one's own spread."""
    generator = torch.Generator(base.device).manual_seed(SEED)
    source = dict(base.named_parameters())
    for name, parameter in noisy.named_parameters():
        if ".layers." in name and parameter.ndim == 2:
            torch.randn(parameter.shape, generator=generator, out=parameter.data)
            parameter.mul_(scale * source[name].std()).add_(source[name])


@torch.no_grad()
def choices(model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """What the model would write instead of each of the last `tokens` tokens: [rows, tokens]."""
    return predictions(model, ids, mask, tokens).argmax(-1)


@torch.no_grad()
def predictions(model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """Logits of each of the last `tokens` tokens, given those before it: [rows, tokens, vocab]."""
    settings = {"attention_mask": mask, "position_ids": positions_of(mask), "use_cache": False}
    return model(ids, **settings, logits_to_keep=tokens + 1).logits[:, :-1]


def random_steering(base: PreTrainedModel, thinking: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Steering:
    """Random vectors at half depth, mild, so that text stays text, and an encoder centred so that all latents win."""
    layer = base.config.num_hidden_layers // 2
    generator = torch.Generator().manual_seed(SEED)
    seen, mean = residuals(base, prompts, layer), residuals(thinking, prompts, layer).mean(0)
    width = len(mean)
    # Two vectors are added at a time. The median: a first token's residual is far larger than the others'.
    size = _STRENGTH * float(seen.norm(dim=-1).median()) / 2**0.5
    vectors = size * normalize(torch.randn(_LATENTS + 1, width, generator=generator), dim=-1)
    weight = torch.randn(_LATENTS, width, generator=generator)
    encoder = SparseEncoder(mean, torch.zeros(width), weight, torch.zeros(_LATENTS))
    keys = tuple(f"behavior-{latent}" for latent in range(_LATENTS))
    return Steering(layer, vectors[0], vectors[1:], keys, layer, encoder)


@torch.no_grad()
def residuals(model: PreTrainedModel, prompts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Residuals [tokens, d] after `layer`, float32 on the CPU, of all tokens but each prompt's first."""
    ids, mask = left_padded(prompts, model.device)
    seen: list[Tensor] = []
    with hooked(model.model.layers[layer], seen.append):
        model(ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False, logits_to_keep=1)
    return seen[0][positions_of(mask) > 0].float().cpu()
