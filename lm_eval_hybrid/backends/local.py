"""A model in this process, read and steered through nnsight.

Design choices:

- The past is kept once, unsteered: keys and values, the hook layer's residuals as far back as the longest
  window, a mask.
- Rows of different lengths are padded on the left, so that every row's last token is in the last column. Mask
  and position ids go with every forward pass: without both, padded cached steps are silently wrong.
- A candidate reruns only the layers above the hook layer, and only the steered positions: the layers below are
  skipped with the kept residual plus steering, and the positions before come from the cache that candidates share.
"""

import sys
from collections.abc import Sequence
from operator import attrgetter

import torch
from nnsight import TransformersModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid.backends.kvcache import Columns, growing_cache, shared_prefix
from lm_eval_hybrid.backends.protocol import Reading
from lm_eval_hybrid.errors import HybridError

_LAYERS = ("model.layers", "gpt_neox.layers", "transformer.h", "model.language_model.layers")
"""Where layers are: Llama, Qwen2/3, Mistral, Gemma2/3; GPT-NeoX; GPT-2; Gemma 3 with vision."""


class LocalBackend:
    """A causal language model in this process; implements `protocol.Backend`.

    Not for two threads at once: nnsight cannot trace one model object from both. It gives a tokenizer without a
    padding token the end of sequence for one.

    Raises:
        HybridError: for an architecture whose layers cannot be found.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.config = model.config
        self.device = model.device
        text_config = model.config.get_text_config()
        self.context_length: int = getattr(text_config, "max_position_embeddings", None) or sys.maxsize
        # Unless told where, it would move the model to the first accelerator there is; accelerate has placed it else.
        place = {} if getattr(model, "hf_device_map", None) else {"device": model.device}
        self.model = TransformersModel(model, tokenizer=tokenizer, task="text-generation", **place)
        for path in _LAYERS:
            try:
                self.layers = list(attrgetter(path)(self.model))
            except AttributeError:
                continue
            return
        raise HybridError(
            f"the model must keep its layers at one of {', '.join(_LAYERS)}; found {type(model).__name__}; "
            "use a Llama, Qwen, Mistral, Gemma, GPT-NeoX or GPT-2 model"
        )

    def open(self, prompts: list[list[int]], layer: int, reach: int | None) -> "LocalSequences":
        """Read the prompts in one padded forward pass; see `protocol.Backend.open`.

        Raises:
            HybridError: for a layer the model does not have.
        """
        if not 0 <= layer < len(self.layers):
            raise HybridError(
                f"the hook layer must be one of the model's {len(self.layers)} layers, from 0; found {layer}; "
                "use a bundle made for this model"
            )
        width = max(map(len, prompts))
        # Any id will do for padding: the mask hides it.
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        return LocalSequences(self, ids, mask, layer, reach)


class LocalSequences:
    """Rows of one `LocalBackend`; implements `protocol.Sequences`."""

    def __init__(self, backend: LocalBackend, ids: Tensor, mask: Tensor, layer: int, reach: int | None) -> None:
        """ids and mask: [rows, width] int64, padded on the left; mask is 1 at real tokens."""
        self._backend = backend
        self._layer = layer
        self._reach = reach
        self._cache = growing_cache()
        self._mask = mask
        self._residuals = Columns(reach or 0)
        self.reading = self._read(ids, _positions(mask))

    def extend(self, tokens: Tensor) -> None:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        self.reading = self._read(tokens.to(self._mask.device)[:, None], positions)

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self._mask.device)
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        self.reading = Reading(self.reading.logits[rows], self.reading.residual[rows])
        if self._reach is not None:
            self._residuals.keep(rows.to(self._residuals.value.device))

    def steered(self, rows: Tensor, steering: Tensor, windows: Sequence[int]) -> Tensor:
        rows = rows.to(self._mask.device)
        groups = {window: [i for i, w in enumerate(windows) if w == window] for window in dict.fromkeys(windows)}
        parts = [self._candidates(rows, steering[:, members], window) for window, members in groups.items()]
        if len(parts) == 1:
            return parts[0]
        grouped = [i for members in groups.values() for i in members]
        return torch.cat(parts, dim=1)[:, sorted(range(len(grouped)), key=grouped.__getitem__)]

    @torch.no_grad()
    def _read(self, ids: Tensor, positions: Tensor) -> Reading:
        """One unsteered forward pass over new columns [rows, n], which join what is kept."""
        # A trace's body sees locals only: it is lifted out of this method, and `self` would go with it.
        model, layer = self._backend.model, self._backend.layers[self._layer]
        arguments = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_key_values": self._cache,
        }
        with model.trace(**arguments, use_cache=True, logits_to_keep=1):
            residual = layer.output.save()
            logits = model.output.logits.save()
        if self._reach is not None:
            self._residuals.append(residual)
        # A model may be spread over several devices; what is read of it comes together.
        device = self._mask.device
        return Reading(logits[:, -1].float().to(device), residual[:, -1].float().to(device))

    @torch.no_grad()
    def _candidates(self, rows: Tensor, steering: Tensor, window: int) -> Tensor:
        """Logits [n, C, vocab] float32 of candidates that share a window; steering is [n, C, d]."""
        length, copies = self._mask.shape[1], steering.shape[1]
        steered = length if window == 0 else min(window, length)
        if self._reach is None or 0 < self._reach < steered:
            raise ValueError(f"window {window} goes beyond the reach {self._reach} these sequences were opened with")
        kept = self._residuals.value
        kept = kept[rows.to(kept.device), -steered:]
        residual = (kept[:, None] + steering[:, :, None].to(kept)).flatten(0, 1)
        mask = self._mask[rows].repeat_interleave(copies, dim=0)
        model, skipped = self._backend.model, self._backend.layers[: self._layer + 1]
        arguments = {
            "input_ids": mask.new_zeros(len(mask), steered),  # of the right shape; what they embed to is skipped
            "attention_mask": mask,
            "position_ids": _positions(mask)[:, -steered:],
        }
        if steered < length:
            arguments["past_key_values"] = shared_prefix(self._cache, rows, copies, length - steered)
        with model.trace(**arguments, use_cache=steered < length, logits_to_keep=1):
            for layer in skipped:
                layer.skip(residual)
            logits = model.output.logits.save()
        return logits[:, -1].float().to(mask.device).unflatten(0, (len(rows), copies))


def _positions(mask: Tensor) -> Tensor:
    """Position of every column among its row's real tokens: [rows, width] int64, 0 at padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)
