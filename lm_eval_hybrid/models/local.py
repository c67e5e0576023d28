"""A model in this process, read and steered through nnsight.

Design choices:

- The past is kept once, unsteered: keys and values, and the hook layer's residuals as far back as the longest window.
- A row's tokens are in its first columns, without padding, whatever the other rows' lengths; so the position of a
  column is its index, and every pass brings its own mask of four dimensions (`portable/attention_masks.py`).
- Candidates rerun only the layers above the hook layer, and only the steered positions: the layers below are skipped
  with the kept residual plus steering. All candidates of a row are branches of it, read side by side in one pass over
  one copy of its past; the mask keeps them apart.
"""

import inspect
import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal

import torch
from nnsight import Envoy, NNsight
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.forward import ReadPass, hooked
from lm_eval_hybrid.models.kv_cache import CacheColumns, RaggedCache, Residuals
from lm_eval_hybrid.models.protocol import ForwardOutput
from lm_eval_hybrid.portable.attention_masks import Branches, Masks

_LAYERS = (
    "model.layers",  # Llama, Qwen2 and 3, Mistral, Gemma 2 and 3, Phi
    "gpt_neox.layers",
    "transformer.h",  # GPT-2
    "model.decoder.layers",  # OPT
    "model.language_model.layers",  # Gemma 3 with vision
)
_PASS = 8192  # tokens of a forward pass at most, where they can be read in several


class LocalBackend:
    """A causal language model in this process; implements `protocol.Backend`.

    Not for two threads at once: nnsight cannot trace one model object from both.

    Raises:
        HybridError: for an architecture whose layers cannot be found, or whose past cannot be taken back.
    """

    is_remote: Literal[False] = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, read_pass: ReadPass = hooked
    ) -> None:
        self.read_pass = read_pass
        self.tokenizer = tokenizer
        self.config = model.config
        self.device = model.device
        self.dtype = model.dtype
        self.parameters = model.num_parameters()
        text_config = model.config.get_text_config()
        self.context_length: int = getattr(text_config, "max_position_embeddings", None) or sys.maxsize
        self.masks = Masks.of(model)
        # Newer releases of transformers (5.24) call the past `cache`.
        parameters = inspect.signature(model.forward).parameters
        self.cache_argument = "cache" if "cache" in parameters else "past_key_values"
        # Not TransformersModel: it takes inputs apart into rows and joins them again, and knows no masks by kind.
        self.model = NNsight(model)
        _, self.layers = layers_of(self.model, model)

    def open(self, rows: int, layer: int, reach: int | None, ahead: int) -> "LocalSequences":
        """Empty rows; see `protocol.Backend.open`.

        Raises:
            HybridError: for a layer the model does not have.
        """
        if not 0 <= layer < len(self.layers):
            raise HybridError(
                f"the hook layer must be one of the model's {len(self.layers)} layers, from 0; found {layer}; "
                "use a bundle made for this model"
            )
        return LocalSequences(self, rows, layer, reach, ahead)


def layers_of(wrapped: Envoy, model: PreTrainedModel) -> tuple[str, list[Envoy]]:
    """(path to its layers, these), of a model as nnsight wraps it.

    Raises:
        HybridError: for an architecture that keeps them elsewhere.
    """
    for path in _LAYERS:
        try:
            return path, list(attrgetter(path)(wrapped))
        except AttributeError:
            continue
    raise HybridError(
        f"the model must keep its layers at one of {', '.join(_LAYERS)}; found {type(model).__name__}; "
        "use a Llama, Qwen, Mistral, Gemma, GPT-NeoX, GPT-2, OPT or Phi model"
    )


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
        width = max(1, _PASS // max(1, len(slots)))
        for start in range(0, max(map(len, prompts), default=0), width):
            parts = [(slot, prompt[start : start + width]) for slot, prompt in zip(slots, prompts, strict=True)]
            parts = [(slot, part) for slot, part in parts if part]
            n = max(len(part) for _, part in parts)
            # Any id will do beyond a row's end: nobody attends to it.
            ids = torch.tensor([[*part, *[0] * (n - len(part))] for _, part in parts], device=self._backend.device)
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
        if self._reach is None or (self._reach and (0 in windows or max(windows) > self._reach)):
            raise ValueError(f"windows {windows} go beyond the reach {self._reach} these sequences were opened with")
        near = [c for c, window in enumerate(windows) if window]
        far = [c for c, window in enumerate(windows) if not window]
        parts = []
        if near:
            parts.append(self._branches(rows, positions, steering[:, near], [windows[c] for c in near]))
        if far:
            # A candidate that is steered everywhere shares nothing: it is a row of its own, without a past.
            count = len(far)
            rows, positions = ([item for item in items for _ in far] for items in (rows, positions))
            whole = [max(positions) + 1]
            alone = self._branches(rows, positions, steering[:, far].flatten(0, 1)[:, None], whole)
            parts.append(alone.unflatten(0, (-1, count))[:, :, 0])
        if len(parts) == 1:
            return parts[0]
        order = near + far
        return torch.cat(parts, dim=1)[:, sorted(range(len(order)), key=order.__getitem__)]

    @torch.no_grad()
    def _read(self, ids: Tensor, counts: Sequence[int], slots: Sequence[int] | None, logits: int) -> ForwardOutput:
        """One unsteered forward pass over ids [m, n]. logits: of how many of the last positions; 0: all."""
        backend, cache = self._backend, self._cache
        rows = range(len(self._lengths)) if slots is None else slots
        cells = CacheColumns.after([self._lengths[row] for row in rows], ids.shape[1], ids.device, slots)
        cache.cells = cells
        arguments = {
            "input_ids": ids,
            "attention_mask": backend.masks.causal(cells.columns, cells.end),
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
        # A model may be spread over several devices; what is read of it comes together.
        return ForwardOutput(said.to(ids.device), residual.float().to(ids.device))

    def _branches(
        self, rows: Sequence[int], positions: Sequence[int], steering: Tensor, windows: Sequence[int]
    ) -> Tensor:
        """Logits [m, C, vocab] with steering [m, C, d], in passes of bounded size. No window is 0."""
        size = max(1, _PASS // sum(windows))
        parts = [
            self._branch(rows[i : i + size], positions[i : i + size], steering[i : i + size], windows)
            for i in range(0, len(rows), size)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _branch(
        self, rows: Sequence[int], positions: Sequence[int], steering: Tensor, windows: Sequence[int]
    ) -> Tensor:
        backend = self._backend
        # A trace's body sees locals only: it is lifted out of this method, and `self` would go with it.
        model, skipped = backend.model, backend.layers[: self._layer + 1]
        rows_there = torch.tensor(rows, device=backend.device)
        branches = Branches.of(positions, windows, backend.device)
        kept = self._residuals.read(rows_there, branches.columns.clamp(min=0))
        residual = kept + steering.to(kept)[:, branches.branch.to(kept.device)]
        ids = branches.columns.clamp(min=0, max=backend.context_length - 1)
        arguments = {
            "input_ids": torch.zeros_like(ids),  # of the right shape; what they embed to is skipped
            "attention_mask": backend.masks.branching(branches),
            "position_ids": ids,
        }
        if branches.shared:
            arguments[backend.cache_argument] = self._cache.branches(rows_there, branches.shared)
        ends = branches.ends
        with model.trace(**arguments, use_cache=branches.shared > 0, logits_to_keep=ends):
            for layer in skipped:
                layer.skip(residual)
            logits = model.output.logits.save()
        return logits.to(backend.device)
