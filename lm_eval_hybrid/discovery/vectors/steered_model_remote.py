"""The base model on a server, steered at segments of traces, and the choice between it and a local one.

Each batch is one request: the vectors go to the server, their losses and gradients come back.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.discovery.vectors.segments import Segment, SegmentBatch, batches
from lm_eval_hybrid.discovery.vectors.steered_model import (
    LocalSteeredModel,
    SegmentOutputs,
    SteeredModel,
    SteeredOutput,
    SteeringVectors,
    TargetDistribution,
    target_tokens,
)
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.protocol import RemoteBackend


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
        """The answer of `portable.fitting.fit`."""
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
