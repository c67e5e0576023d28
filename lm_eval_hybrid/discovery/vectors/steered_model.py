"""The frozen base model, steered at segments of traces: vectors are fitted to its losses and measured by them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors.segments import Prefix, PrefixCache, Segment, SegmentBatch, batches
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.protocol import RemoteBackend
from lm_eval_hybrid.portable.attention_masks import branch_mask
from lm_eval_hybrid.portable.steering import divergence, steering


@dataclass(frozen=True)
class SteeringVectors:
    """One way to steer the base; see `portable.steering.steering`.

    Attributes:
        bias: [d]; vectors: [latents, d].
    """

    bias: Tensor
    vectors: Tensor | None = None
    network: CoefficientNetwork | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, the network's by its field names."""
        tensors = {"bias": self.bias}
        if self.vectors is not None:
            tensors["vectors"] = self.vectors
        return tensors if self.network is None else tensors | vars(self.network)

    def at(self, residual: Tensor, category: Tensor) -> Tensor:
        """The steering [m, T, d] to add to residuals [m, T, d] of categories [m, T]."""
        network = None if self.network is None else self.network.tensors
        return steering(residual, category, self.bias, self.vectors, network)


@dataclass(frozen=True)
class TargetDistribution:
    """The next-token distributions to fit to, one for each segment of a single token, by the segment's index.

    Attributes:
        tokens: [n, K] int64, negative where there are fewer; logprobs: [n, K] float32.
    """

    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class SteeredOutput:
    """Losses and predictions of the base at t tokens, steered in one way.

    Attributes:
        loss: [] float32, the sum of `losses`, with gradients to the vectors.
        losses: [t] float32, in nats; see `portable.steering.divergence`.
        choice: [t] int64, the likeliest token.
    """

    loss: Tensor
    losses: Tensor
    choice: Tensor


@dataclass(frozen=True)
class SegmentOutputs:
    """The outputs for one batch of segments, t tokens without padding. On the CPU, except `outputs`.

    Attributes:
        target, category, index: [t] int64, of each token; `index` is its segment's.
        outputs: one for each way to steer.
    """

    target: Tensor
    category: Tensor
    index: Tensor
    outputs: tuple[SteeredOutput, ...]

    @classmethod
    def of(cls, batch: SegmentBatch, outputs: Sequence[SteeredOutput]) -> "SegmentOutputs":
        real = batch.real
        return cls(batch.target[real], batch.category[real], batch.index[real], tuple(outputs))


class SteeredModel(Protocol):
    """The base model, with the rows of tokens that segments refer to. Its weights stay frozen.

    Attributes:
        device: of the vectors; width: d.
    """

    device: torch.device
    width: int

    def forward(
        self,
        segments: Sequence[Segment],
        ways: Sequence[SteeringVectors],
        targets: TargetDistribution | None = None,
    ) -> Iterator[SegmentOutputs]:
        """Steer the segments in several ways, batch by batch; `targets` defaults to the segments' own tokens."""

    def residual_norm(self, segments: Sequence[Segment]) -> float:
        """Mean norm of the unsteered residual stream at the segments' tokens."""


def target_tokens(batch: SegmentBatch, targets: TargetDistribution | None) -> tuple[Tensor, Tensor]:
    """(tokens, logprobs), [t, K] each: the target distribution at each token of a batch."""
    if targets is None:
        tokens = batch.target[batch.real][:, None]
        return tokens, torch.zeros(tokens.shape)
    index = batch.index[batch.real]
    return targets.tokens[index], targets.logprobs[index]


@dataclass(frozen=True)
class LocalBatch:
    """A batch of segments with its rows' prefixes; tensors, as of `SegmentBatch`, on the model's device."""

    segments: SegmentBatch
    prefix: Prefix
    columns: Tensor
    branch: Tensor
    forks: Tensor
    category: Tensor

    @property
    def real(self) -> Tensor:
        """[m, T] bool: True except in padding."""
        return self.columns >= 0

    def residual(self) -> Tensor:
        """[m, T, d]: the unsteered residual after the steering layer, at each token."""
        columns = self.columns.clamp(min=0)
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return self.prefix.residual[rows, columns]


class LocalSteeredModel:
    """Implements `SteeredModel` by a model in this process.

    Args:
        rows: of the base's tokens.
        layer: the layer whose output is steered.
    """

    def __init__(self, base: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        base.model._module.requires_grad_(False)
        self.prefixes = PrefixCache(base, rows, layer)
        self.device = base.device
        text_config = base.config.get_text_config()
        self.width: int = text_config.hidden_size
        self._vocabulary: int = text_config.vocab_size

    def forward(
        self,
        segments: Sequence[Segment],
        ways: Sequence[SteeringVectors],
        targets: TargetDistribution | None = None,
    ) -> Iterator[SegmentOutputs]:
        for batch in self.batches(segments):
            tokens, logprobs = (tensor.to(self.device) for tensor in target_tokens(batch.segments, targets))
            outputs = [self._output(batch, way, tokens, logprobs) for way in ways]
            yield SegmentOutputs.of(batch.segments, outputs)

    def residual_norm(self, segments: Sequence[Segment]) -> float:
        total = count = 0.0
        for batch in self.batches(segments):
            norms = batch.residual()[batch.real].float().norm(dim=-1)
            total, count = total + norms.sum().item(), count + len(norms)
        return total / count

    def batches(self, segments: Sequence[Segment]) -> Iterator[LocalBatch]:
        """The batches that `forward` reads."""
        for batch in batches(segments, self._vocabulary):
            prefix = self.prefixes.read(batch.rows, batch.width)
            parts = (batch.columns, batch.branch, batch.forks, batch.category)
            yield LocalBatch(batch, prefix, *(part.to(self.device) for part in parts))

    def logits(self, batch: LocalBatch, steering: Tensor) -> Tensor:
        """Next-token logits [m, T, vocab] float32, with `steering` [m, T, d] added to the residual at each token.

        Gradients reach `steering` through the layers above.
        """
        base, columns, layer = self.prefixes.base, batch.columns, self.prefixes.layer
        keys = torch.arange(batch.prefix.residual.shape[1], device=columns.device)[None]
        residual = batch.residual()
        steered = residual + steering.to(residual.dtype)
        ids = columns.clamp(min=0, max=base.context_length - 1)
        arguments = {
            "input_ids": torch.zeros_like(ids),  # only its shape matters: the embeddings are skipped
            "attention_mask": branch_mask(columns, batch.branch, batch.forks, keys, base.mask_form),
            "position_ids": ids,
            base.cache_argument: batch.prefix.kv_cache(layer + 1),
        }
        model, skipped = base.model, base.layers[: layer + 1]
        with model.trace(**arguments, use_cache=True):
            for below in skipped:
                below.skip(steered)
            logits = model.output.logits.save()
        return logits.to(base.device).float()

    def _output(self, batch: LocalBatch, way: SteeringVectors, tokens: Tensor, logprobs: Tensor) -> SteeredOutput:
        steering = way.at(batch.residual(), batch.category)
        logits = self.logits(batch, steering)[batch.real]
        losses = divergence(logits, tokens, logprobs)
        return SteeredOutput(losses.sum(), losses.detach(), logits.detach().argmax(-1))


def steered_model(base: LocalBackend | RemoteBackend, rows: Sequence[Sequence[int]], layer: int) -> SteeredModel:
    """The base with rows of its tokens, steered after a layer, wherever it runs."""
    if base.is_remote:
        return RemoteSteeredModel(base, rows, layer)
    return LocalSteeredModel(base, rows, layer)


class RemoteSteeredModel:
    """Implements `SteeredModel` by a model on a server. Vectors and outputs are on the CPU.

    Args:
        rows: of the base's tokens.
        layer: the layer whose output is steered.
    """

    def __init__(self, base: RemoteBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        self._base, self._rows, self._layer = base, rows, layer
        self.device = base.device
        text_config = base.config.get_text_config()
        self.width: int = text_config.hidden_size
        self._vocabulary: int = text_config.vocab_size

    def forward(
        self,
        segments: Sequence[Segment],
        ways: Sequence[SteeringVectors],
        targets: TargetDistribution | None = None,
    ) -> Iterator[SegmentOutputs]:
        tensors = [way.tensors for way in ways]
        trained = {name: tensor for name, tensor in tensors[0].items() if tensor.requires_grad}
        if not torch.is_grad_enabled():
            trained = {}
        for batch in batches(segments, self._vocabulary):
            answer = self._request(batch, tensors, list(trained), targets)
            outputs = [
                SteeredOutput(losses.sum(), losses, choice)
                for losses, choice in zip(answer["loss"], answer["choice"], strict=True)
            ]
            if trained:
                first = outputs[0]
                outputs[0] = SteeredOutput(_with_gradients(first.loss, trained, answer), first.losses, first.choice)
            yield SegmentOutputs.of(batch, outputs)

    def residual_norm(self, segments: Sequence[Segment]) -> float:
        norms = [self._request(batch, [], [], None)["norm"] for batch in batches(segments, self._vocabulary)]
        return torch.cat(norms).mean().item()

    def _request(
        self,
        batch: SegmentBatch,
        ways: Sequence[dict[str, Tensor]],
        gradient: list[str],
        targets: TargetDistribution | None,
    ) -> dict[str, Any]:
        """The answer of `portable.programs.fit`."""
        tokens, logprobs = target_tokens(batch, targets)
        return self._base.fit(
            {
                "ids": [list(self._rows[row][: batch.width]) for row in batch.rows],
                "layer": self._layer,
                "columns": batch.columns,
                "branch": batch.branch,
                "forks": batch.forks,
                "category": batch.category,
                "tokens": tokens,
                "logprobs": logprobs,
                "ways": [{name: tensor.detach() for name, tensor in way.items()} for way in ways],
                "gradient": gradient,
            }
        )


def _with_gradients(loss: Tensor, tensors: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """The same loss, differentiable: its gradients with respect to the tensors are the given ones."""
    for name, tensor in tensors.items():
        loss = loss + ((tensor - tensor.detach()) * gradients[name]).sum()
    return loss
