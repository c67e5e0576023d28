"""What one would write without an engine: both models in step, each with its cache, steered by plain forward hooks.

A token costs one cached step of each model; where rows disagree, one more step of the base, in which every candidate
of such a row is a row with its own copy of the past, and a hook adds the steering to the last position. Greedy, gate
`disagreement`, select `guardrail`, window 1: its tokens are the engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from benchmarks.plain import cache_argument, hooked, left_padded, positions_of
from lm_eval_hybrid.decoding.steering import Steering


@dataclass(frozen=True)
class Lockstep:
    """A pair decoded in step. `coefficients` are tried in this order; of equals the smaller one is taken."""

    base: PreTrainedModel
    thinking: PreTrainedModel
    steering: Steering
    coefficients: Sequence[float]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Exactly this many tokens after each prompt, which both models share."""
        device = self.base.device
        steering, encoder = self.steering, self.steering.encoder.to(device)
        vectors = (steering.bias + steering.vectors).to(device)
        coefficients = torch.tensor(sorted(self.coefficients, key=abs), device=device)
        base, thinking = (_Rows(model, *left_padded(prompts, device)) for model in (self.base, self.thinking))
        seen: list[Tensor] = []
        written: list[Tensor] = []
        for _ in range(tokens):
            token = base.step().argmax(-1)
            with hooked(self.thinking.model.layers[steering.sae_layer], seen.append):
                logprobs = thinking.step().float().log_softmax(-1)
            residual = seen.pop()[:, -1].float()
            rows = (token != logprobs.argmax(-1)).nonzero()[:, 0]
            if len(rows):
                added = coefficients[:, None] * vectors[encoder.category(residual[rows])][:, None]
                candidates = base.candidates(rows, added, steering.layer).argmax(-1)
                best = logprobs[rows].gather(1, candidates).argmax(1, keepdim=True)
                token[rows] = candidates.gather(1, best)[:, 0]
            base.append(token)
            thinking.append(token)
            written.append(token)
        return torch.stack(written, 1).tolist()


class _Rows:
    """What one model has read of every row: all but the last token, which the next step reads."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
        self._model = model
        self._argument = cache_argument(model)
        self._last = ids[:, -1:]
        self._mask = mask
        self._padded = not bool(mask.all())
        self._positions = positions_of(mask)[:, -1:]
        self._cache = DynamicCache()
        if ids.shape[1] > 1:
            past = {"attention_mask": mask[:, :-1], "position_ids": positions_of(mask)[:, :-1]}
            self._run(self._cache, input_ids=ids[:, :-1], **past)

    def step(self) -> Tensor:
        """Read the last token: next-token logits [rows, vocab]."""
        return self._run(self._cache, **self._inputs(slice(None), 1))[:, -1]

    def candidates(self, rows: Tensor, steering: Tensor, layer: int) -> Tensor:
        """Read it again with steering [n, C, d] added after `layer`, in n of the rows: logits [n, C, vocab]."""
        count = steering.shape[1]
        past = DynamicCache()
        for index, kept in enumerate(self._cache.layers):
            # For a single row this is a view: the past is then copied once, when the step appends to it.
            copies = [
                t[rows, :, :-1][:, None].expand(-1, count, -1, -1, -1).flatten(0, 1) for t in (kept.keys, kept.values)
            ]
            past.update(*copies, index)
        added = steering.flatten(0, 1)[:, None]
        with hooked(self._model.model.layers[layer], lambda residual: residual + added.to(residual)):
            logits = self._run(past, **self._inputs(rows, count))
        return logits[:, -1].unflatten(0, (len(rows), count))

    def append(self, tokens: Tensor) -> None:
        """Go on with one token a row: [rows]."""
        self._last = tokens[:, None]
        self._positions = self._positions + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)

    def _inputs(self, rows: Tensor | slice, copies: int) -> dict[str, Tensor]:
        inputs = {"input_ids": self._last, "position_ids": self._positions}
        if self._padded:  # a mask without padding only costs time
            inputs["attention_mask"] = self._mask
        return {name: t[rows].repeat_interleave(copies, 0) for name, t in inputs.items()}

    def _run(self, cache: DynamicCache, **inputs: Tensor) -> Tensor:
        return self._model(**inputs, **{self._argument: cache}, use_cache=True, logits_to_keep=1).logits
