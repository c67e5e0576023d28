"""Forward passes over encoded traces, by a model in this process or on a server.

`reader_of` chooses between the two, and nothing above it needs to know. From a server only the results cross the
network: residuals at the onsets of sentences, their means, residuals where the models disagree, and chosen tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.decoding.tokens.bridge import Bridge, Choices
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, Model
from lm_eval_hybrid.discovery.traces.trace import SentenceSpan
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import NdifModel
from lm_eval_hybrid.models.protocol import ForwardOutput
from lm_eval_hybrid.portable.attention_masks import pad_rows

TOP = 8
"""How many of the thinking model's likeliest tokens are kept where the models disagree."""
LOGIT_BYTES = 2**28
"""Limit on the float32 logits of one pass, unless the logits after one token exceed it."""


@dataclass(frozen=True)
class ThinkingChoices:
    """The thinking model's choices in one trace at the g positions where the base model chooses otherwise. On the CPU.

    Attributes:
        steps: [g] int64, indices into `EncodedTrace.compared_columns`.
        choice: [g] int64, the thinking model's likeliest token.
        top, top_logprob: [g, TOP] int64 and float32, its likeliest tokens, in order.
        category: [g] int64, the strongest latent.
    """

    steps: Tensor
    choice: Tensor
    top: Tensor
    top_logprob: Tensor
    category: Tensor


class LocalTraceReader:
    """A model in this process, run over encoded traces in passes that the caller keeps small."""

    def __init__(self, model: LocalBackend) -> None:
        self._model = model

    @torch.no_grad()
    def sentence_residuals(
        self, rows: Sequence[Sequence[int]], sentences: Sequence[Sequence[SentenceSpan]], layers: Sequence[int]
    ) -> dict[str, tuple[Tensor, ...]]:
        """Residuals at the sentences of some rows of tokens, in one pass.

        Returns:
            [sentences, d] float32 for each row, under `onset.LAYER` (before a sentence's first token) and `mean.LAYER`
            (over its tokens).
        """
        ascending = sorted(layers)
        hooks = [self._model.layers[layer] for layer in ascending]
        with self._model.model.trace(
            **padded_inputs(rows, self._model.device), use_cache=False, logits_to_keep=1
        ) as tracer:
            saved = nnsight.save([hook.output for hook in hooks])
            tracer.stop()  # the layers above are not needed
        residuals = dict(zip(ascending, saved, strict=True))
        spans = [
            (row * residuals[layers[0]].shape[1] + s.begin, s.end - s.begin)
            for row, some in enumerate(sentences)
            for s in some
        ]
        begins, lengths = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        # The tokens of all sentences, one after the other, so that one reduction serves the whole pass.
        tokens = (begins - lengths.cumsum(0) + lengths).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        counts = [len(some) for some in sentences]
        found: dict[str, tuple[Tensor, ...]] = {}
        for layer in layers:
            flat, device = residuals[layer].flatten(0, 1), residuals[layer].device
            onsets = flat[(begins - 1).to(device)].float()
            # `unsafe` skips checks of the lengths, which fail if there are none.
            means = torch.segment_reduce(
                flat[tokens.to(device)].float(), "mean", lengths=lengths.to(device), axis=0, unsafe=True
            )
            found[f"onset.{layer}"], found[f"mean.{layer}"] = (part.cpu().split(counts) for part in (onsets, means))
        return found

    def base_choices(self, encoded: Sequence[EncodedTrace], bridge: Bridge) -> list[Tensor]:
        """The base model's likeliest token at each compared position: int64 on the CPU, one tensor for each trace."""
        outputs = self._passes([one.base_ids for one in encoded], len(self._model.layers) - 1)
        choices = torch.cat([bridge.base_logits(output.logits).argmax(-1).cpu() for output in outputs], 1)
        return [row[one.compared_columns] for row, one in zip(choices, encoded, strict=True)]

    def thinking_choices(
        self,
        encoded: Sequence[EncodedTrace],
        bridge: Bridge,
        base_choices: Sequence[Tensor],
        encoder: SparseEncoder,
        layer: int,
    ) -> Iterator[ThinkingChoices]:
        """For each trace, the thinking model's choices that differ from `base_choices`.

        Args:
            encoder: gives the category, of the residual after `layer`.
        """
        parts = []
        for output in self._passes([one.thinking_ids for one in encoded], layer):
            logits = bridge.thinking_logits(output.logits)
            top = logits.float().log_softmax(-1).topk(TOP)
            category = encoder.category(output.residual.cpu().flatten(0, 1)).unflatten(0, logits.shape[:2])
            parts.append([tensor.cpu() for tensor in (logits.argmax(-1), top.indices, top.values, category)])
        joined = [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]
        for row, one in enumerate(encoded):
            compared = slice(one.begin - 1, one.begin - 1 + len(one.compared_columns))
            choice, *others = (tensor[row, compared] for tensor in joined)
            steps = (~bridge.agree(base_choices[row], choice)).nonzero()[:, 0]
            yield ThinkingChoices(steps, choice[steps], *(tensor[steps] for tensor in others))

    def _passes(self, rows: Sequence[Sequence[int]], layer: int) -> Iterator[ForwardOutput]:
        """Read rows side by side, a few columns at a time, so that their logits stay within LOGIT_BYTES."""
        room = LOGIT_BYTES // (4 * self._model.config.get_text_config().vocab_size)
        sequences = self._model.open(len(rows), layer, reach=None, ahead=0)
        for columns in pad_rows(rows).split(max(1, room // len(rows)), dim=1):
            yield sequences.read(columns)


class RemoteTraceReader:
    """A model on a server, run over encoded traces; the methods are those of `LocalTraceReader`."""

    def __init__(self, model: NdifModel) -> None:
        self._model = model

    def sentence_residuals(
        self, rows: Sequence[Sequence[int]], sentences: Sequence[Sequence[SentenceSpan]], layers: Sequence[int]
    ) -> dict[str, tuple[Tensor, ...]]:
        spans = [[(sentence.begin, sentence.end) for sentence in some] for some in sentences]
        found = self._model.sentences({"ids": [list(row) for row in rows], "layers": list(layers), "spans": spans})
        counts = [len(some) for some in sentences]
        return {
            f"{kind}.{layer}": found[kind][i].split(counts)
            for kind in ("onset", "mean")
            for i, layer in enumerate(layers)
        }

    def base_choices(self, encoded: Sequence[EncodedTrace], bridge: Bridge) -> list[Tensor]:
        positions = [one.compared_columns for one in encoded]
        own = {
            "accepted": [[[]] * len(row) for row in positions],
            "opens": [[0] * len(row) for row in positions],
            "top": 1,
            "layer": 0,
            "residual": False,
        }
        rows = [one.base_ids for one in encoded]
        choices = self._model.read(_request(rows, positions, bridge.base_choices) | own)["choice"]
        return [row[: len(some)] for row, some in zip(choices, positions, strict=True)]

    def thinking_choices(
        self,
        encoded: Sequence[EncodedTrace],
        bridge: Bridge,
        base_choices: Sequence[Tensor],
        encoder: SparseEncoder,
        layer: int,
    ) -> Iterator[ThinkingChoices]:
        positions = [list(range(one.begin - 1, one.begin - 1 + len(one.compared_columns))) for one in encoded]
        own = {
            "accepted": [[bridge.agreeing(choice) for choice in row.tolist()] for row in base_choices],
            "opens": [[-1] * len(row) for row in positions],
            "top": TOP,
            "layer": layer,
            "residual": True,
        }
        rows = [one.thinking_ids for one in encoded]
        found = self._model.read(_request(rows, positions, bridge.thinking_choices) | own)
        category = encoder.category(found["residual"])
        for row in range(len(encoded)):
            of_row = found["rows"] == row
            steps = found["steps"][of_row]
            top, logprobs = found["top_tokens"][of_row], found["top_logprobs"][of_row]
            yield ThinkingChoices(steps, found["choice"][row, steps], top, logprobs, category[of_row])


TraceReader = LocalTraceReader | RemoteTraceReader


def reader_of(model: Model) -> TraceReader:
    return RemoteTraceReader(model) if model.is_remote else LocalTraceReader(model)


def _request(rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], allowed: Choices) -> dict[str, Any]:
    """The arguments of `programs.read` that are alike for both models."""
    return {
        # A row is not needed beyond its last position; but a pass needs a token.
        "ids": [list(row[: max(some, default=0) + 1]) for row, some in zip(rows, positions, strict=True)],
        "wanted": [list(some) for some in positions],
        "spoken": [[-1] * len(some) for some in positions],
        "every": True,
        "chosen": True,
        "width": allowed.width,
        "blocked": list(allowed.blocked),
        "sampling": [None] * len(rows),
        "drawn": None,
    }


def padded_inputs(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Input ids and mask of rows, padded on the right, where causal attention never looks."""
    return {"input_ids": pad_rows(rows, device), "attention_mask": pad_rows([[1] * len(row) for row in rows], device)}


def in_batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Group indices, in order, into batches of at most `tokens` tokens when padded, or of one row that is longer."""
    batch: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch
