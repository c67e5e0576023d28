"""A model in this process, read and steered through nnsight.

Design choices:

- The KV cache is never steered; it is kept with the hook layer's residuals, as far back as the longest window reaches.
- A row's tokens are in its first columns, without padding, so that a column's index is its position, and every pass
  brings its own four-dimensional mask (`portable/attention_masks.py`).
- Candidates rerun only the layers above the hook layer, and only the steered positions: the layers below are skipped,
  with the stored residual plus steering as their output. The candidates of a row are branches of it, read side by side
  in one pass over one copy of its KV cache; the mask keeps them apart.
- Unsteered passes, nearly all there are, go around nnsight by a forward hook: a trace visits every module, which is a
  measurable part of a short pass (`benchmarks/passes.py`). A test holds both to the same bits.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import torch
from nnsight import Envoy, NNsight
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.kv_cache import CacheColumns, RaggedCache, Residuals
from lm_eval_hybrid.models.protocol import ForwardOutput
from lm_eval_hybrid.portable.attention_masks import (
    FULL,
    SLIDING,
    branch_layout,
    branch_mask,
    causal_mask,
    mask_form,
    pad_rows,
)
from lm_eval_hybrid.portable.passes import PASS_TOKENS, cache_argument

_LAYERS = (
    "model.layers",  # Llama, Qwen2 and 3, Mistral, Gemma 2 and 3, Phi
    "gpt_neox.layers",
    "transformer.h",  # GPT-2
    "model.decoder.layers",  # OPT
    "model.language_model.layers",  # Gemma 3 with vision
)

ReadPass = Callable[[Envoy, Envoy, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""(model, one of its layers, forward arguments) -> (the layer's output [rows, n, d], logits [rows, n or 1, vocab])."""


def traced(model: Envoy, layer: Envoy, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """An unsteered pass through nnsight."""
    with model.trace(**arguments):
        residual = layer.output.save()
        logits = model.output.logits.save()
    return residual, logits


def hooked(model: Envoy, layer: Envoy, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The same pass around nnsight, by a hook on the wrapped module."""
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output)

    handle = layer._module.register_forward_hook(record)
    try:
        logits = model._module(**arguments).logits
    finally:
        handle.remove()
    return outputs[0], logits


def layers_of(wrapped: Envoy, model: PreTrainedModel) -> tuple[str, list[Envoy]]:
    """(path of the layers, the layers) of a model as nnsight wraps it.

    Raises:
        HybridError: the architecture keeps them elsewhere.
    """
    for path in _LAYERS:
        try:
            return path, list(attrgetter(path)(wrapped))
        except AttributeError:
            continue
    raise HybridError(
        f"{type(model).__name__} keeps its layers at none of {', '.join(_LAYERS)}; use a Llama, Qwen, Mistral, Gemma, "
        "GPT-NeoX, GPT-2, OPT or Phi model"
    )


def check_attention(model: PreTrainedModel) -> None:
    """Check that a model's attention takes our masks, and that its past can be rewound.

    Raises:
        HybridError: it does not, or it cannot.
    """
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    if attention not in ("eager", "sdpa"):
        raise HybridError(
            f"attention implementation {attention} takes no masks, which a hybrid needs; pass attn_implementation=sdpa"
            " (or eager)"
        )
    _, _, kinds = mask_form(model)
    if getattr(model, "_is_stateful", False) or set(kinds) - {FULL, SLIDING}:
        found = ", ".join(kinds) or "a recurrent state"
        raise HybridError(
            f"{type(model).__name__} cannot rewind its past ({found}), which a hybrid needs; use a transformer whose "
            "layers all have full or sliding attention"
        )


class LocalBackend:
    """A causal language model in this process; implements `protocol.Backend`.

    Not for two threads at once: nnsight cannot trace one model object from both.

    Attributes:
        model: wrapped by nnsight; layers: its layers, wrapped.
        mask_form: what its masks look like; see `portable.attention_masks`.
        cache_argument: the name under which its forward takes a KV cache.
        read_pass: how it is read unsteered.

    Raises:
        HybridError: the layers of its architecture cannot be found; see also `check_attention`.
    """

    is_remote: Literal[False] = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, read_pass: ReadPass = hooked
    ) -> None:
        check_attention(model)
        self.read_pass = read_pass
        self.tokenizer = tokenizer
        self.config = model.config
        self.device = model.device
        self.dtype = model.dtype
        self.parameters = model.num_parameters()
        text_config = model.config.get_text_config()
        self.context_length: int = getattr(text_config, "max_position_embeddings", None) or sys.maxsize
        self.mask_form = mask_form(model)
        self.cache_argument = cache_argument(model)
        # Not TransformersModel, which splits inputs into rows, and knows no mask for each kind of layer.
        self.model = NNsight(model)
        _, self.layers = layers_of(self.model, model)

    def open(self, rows: int, layer: int, reach: int | None, ahead: int) -> "LocalSequences":
        """See `protocol.Backend`.

        Raises:
            HybridError: the model has no such layer.
        """
        if not 0 <= layer < len(self.layers):
            raise HybridError(
                f"the model has no layer {layer} to hook: it has {len(self.layers)} layers, from 0; use a bundle made "
                "for this model"
            )
        return LocalSequences(self, rows, layer, reach, ahead)


class LocalSequences:
    """Rows of one `LocalBackend`; implements `protocol.Sequences`."""

    def __init__(self, backend: LocalBackend, rows: int, layer: int, reach: int | None, ahead: int) -> None:
        self._backend = backend
        self._layer = layer
        self._reach = reach
        self._lengths = [0] * rows
        self._cache = RaggedCache(rows, len(backend.layers))
        self._residuals = None if reach is None else Residuals(rows, reach, ahead)

    def insert(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        for slot in slots:
            self._lengths[slot] = 0
        width = max(1, PASS_TOKENS // max(1, len(slots)))
        for start in range(0, max(map(len, prompts), default=0), width):
            parts = [(slot, prompt[start : start + width]) for slot, prompt in zip(slots, prompts, strict=True)]
            parts = [(slot, part) for slot, part in parts if part]
            ids = pad_rows([part for _, part in parts], self._backend.device)
            self._read(ids, [len(part) for _, part in parts], [slot for slot, _ in parts], logits=1)

    def read(self, tokens: Tensor, counts: Sequence[int] | None = None) -> ForwardOutput:
        tokens = tokens.to(self._backend.device)
        return self._read(tokens, counts or [tokens.shape[1]] * len(tokens), None, logits=0)

    def rewind(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)

    def select(self, slots: Sequence[int]) -> None:
        rows = torch.tensor(slots, device=self._backend.device)
        self._lengths = [self._lengths[slot] for slot in slots]
        self._cache.select(rows)
        if self._residuals is not None:
            self._residuals.select(rows)

    def steered(
        self, rows: Sequence[int], positions: Sequence[int], steering: Tensor, windows: Sequence[int]
    ) -> Tensor:
        residuals = self._residuals
        if residuals is None or (self._reach and (0 in windows or max(windows) > self._reach)):
            raise ValueError(f"windows {windows} exceed the reach {self._reach} that these sequences were opened with")
        near = [c for c, window in enumerate(windows) if window]
        far = [c for c, window in enumerate(windows) if not window]
        parts = []
        if near:
            parts.append(self._branches(residuals, rows, positions, steering[:, near], [windows[c] for c in near]))
        if far:
            # A candidate that is steered at every position shares no past: it is a row of its own.
            rows, positions = ([item for item in items for _ in far] for items in (rows, positions))
            alone = steering[:, far].flatten(0, 1)[:, None]
            logits = self._branches(residuals, rows, positions, alone, [max(positions) + 1])
            parts.append(logits.unflatten(0, (-1, len(far)))[:, :, 0])
        if len(parts) == 1:
            return parts[0]
        order = near + far
        return torch.cat(parts, dim=1)[:, sorted(range(len(order)), key=order.__getitem__)]

    @torch.no_grad()
    def _read(self, ids: Tensor, counts: Sequence[int], slots: Sequence[int] | None, logits: int) -> ForwardOutput:
        """One unsteered pass over ids [m, n]. logits: the number of last positions to return them of (0: all)."""
        backend, cache = self._backend, self._cache
        rows = range(len(self._lengths)) if slots is None else slots
        cells = CacheColumns.after([self._lengths[row] for row in rows], ids.shape[1], ids.device, slots)
        cache.cells = cells
        keys = torch.arange(cells.end, device=ids.device)[None]
        arguments = {
            "input_ids": ids,
            "attention_mask": causal_mask(cells.columns, keys, backend.mask_form),
            "position_ids": cells.columns.clamp(max=backend.context_length - 1),
            backend.cache_argument: cache,
            "use_cache": True,
            "logits_to_keep": logits,
        }
        residual, said = backend.read_pass(backend.model, backend.layers[self._layer], arguments)
        if self._residuals is not None:
            self._residuals.write(residual, cells, counts)
        for row, count in zip(rows, counts, strict=True):
            self._lengths[row] += count
        # The layers of one model may be on several devices.
        return ForwardOutput(said.to(ids.device), residual.float().to(ids.device))

    def _branches(
        self,
        residuals: Residuals,
        rows: Sequence[int],
        positions: Sequence[int],
        steering: Tensor,
        windows: Sequence[int],
    ) -> Tensor:
        """Logits [m, C, vocab] with steering [m, C, d], in passes of bounded size. No window is 0."""
        size = max(1, PASS_TOKENS // sum(windows))
        starts = range(0, len(rows), size)
        parts = (slice(start, start + size) for start in starts)
        return torch.cat(
            [self._branch(residuals, rows[part], positions[part], steering[part], windows) for part in parts]
        )

    @torch.no_grad()
    def _branch(
        self,
        residuals: Residuals,
        rows: Sequence[int],
        positions: Sequence[int],
        steering: Tensor,
        windows: Sequence[int],
    ) -> Tensor:
        backend = self._backend
        # The body of a trace may name locals only: it is lifted out of this method, and `self` would go with it.
        model, skipped = backend.model, backend.layers[: self._layer + 1]
        row_ids = torch.tensor(rows, device=backend.device)
        last = torch.tensor(positions, device=backend.device)[:, None]
        branch, offset, fork, ends = branch_layout(windows, backend.device)
        columns = last + offset  # below 0 where a window is longer than the row
        shared = max(0, max(positions) + 1 - min(windows))
        keys = torch.arange(shared, device=backend.device)[None]
        kept = residuals.read(row_ids, columns.clamp(min=0))
        residual = kept + steering.to(kept)[:, branch.to(kept.device)]
        ids = columns.clamp(min=0, max=backend.context_length - 1)
        arguments: dict[str, Any] = {
            "input_ids": torch.zeros_like(ids),  # placeholders: embeddings are skipped
            "attention_mask": branch_mask(columns, branch, last + fork, keys, backend.mask_form),
            "position_ids": ids,
        }
        if shared:
            arguments[backend.cache_argument] = self._cache.branches(row_ids, shared)
        with model.trace(**arguments, use_cache=shared > 0, logits_to_keep=ends):
            for layer in skipped:
                layer.skip(residual)
            logits = model.output.logits.save()
        return logits.to(backend.device)
