"""Plain transformers and PyTorch, as what they give is measured against: padded batches, `generate`, forward hooks."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both [rows, longest] int64, the prompts at the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (longest - len(prompt)), *prompt] for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """The position of every column of a mask, counted from each row's first token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy `generate` of exactly this many tokens: (ids, mask), both [rows, longest + tokens]."""
    ids, mask = left_padded(prompts, model.device)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": tokens}
    ids = model.generate(ids, attention_mask=mask, **settings)
    return ids, torch.cat([mask, mask.new_ones(len(mask), tokens)], 1)


def cache_argument(model: PreTrainedModel) -> str:
    """What `forward` calls the past: newer releases of transformers (5.24) renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@contextmanager
def hooked(layer: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While inside, `hook` sees the layer's output [rows, n, d], and what it returns, unless None, replaces it."""
    handle = layer.register_forward_hook(lambda module, inputs, output: hook(output))
    try:
        yield
    finally:
        handle.remove()
