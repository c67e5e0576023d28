"""The frozen base, steered at segments of traces: what vectors are fitted to and measured on, wherever it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors.pasts import Pasts
from lm_eval_hybrid.discovery.vectors.segments import Layout, Pack, Segment, pack, steered_logits
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.portable.steering import divergence, steering


@dataclass(frozen=True)
class Vectors:
    """What the base is steered with; see `steer.steering`.

    Attributes:
        bias: [d]; vectors: [latents, d].
    """

    bias: Tensor
    vectors: Tensor | None = None
    network: CoefficientNetwork | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name, the network's by its own."""
        found = {"bias": self.bias}
        if self.vectors is not None:
            found["vectors"] = self.vectors
        return found if self.network is None else found | vars(self.network)

    def added(self, packed: Pack) -> Tensor:
        """What is added at each token, [m, T, d]."""
        network = None if self.network is None else self.network.tensors
        return steering(packed.residual(), packed.category, self.bias, self.vectors, network)


@dataclass(frozen=True)
class Wanted:
    """What the base is to say after a segment of one token: a distribution, by the segment's number.

    Attributes:
        tokens: [n, K] int64, below 0 where there are fewer; logprobs: [n, K] float32.
    """

    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Said:
    """What the base says at t tokens, steered in one way.

    Attributes:
        total: [] float32, the sum of `loss`. Gradients reach the vectors through it.
        loss: [t] float32, in nats; see `steer.divergence`.
        choice: [t] int64, its likeliest token.
    """

    total: Tensor
    loss: Tensor
    choice: Tensor


@dataclass(frozen=True)
class Reading:
    """Segments that were read in one pass: t tokens. On the CPU, but for what is said.

    Attributes:
        target, category, number: [t] int64, of each token; number: of its segment.
        said: in each way.
    """

    target: Tensor
    category: Tensor
    number: Tensor
    said: tuple[Said, ...]


class SteeredBase(Protocol):
    """The base and the rows of its tokens that segments are of. Its weights stay as they are.

    Attributes:
        device: where vectors belong; width: d.
    """

    device: torch.device
    width: int

    def read(
        self, segments: Sequence[Segment], ways: Sequence[Vectors], wanted: Wanted | None = None
    ) -> Iterator[Reading]:
        """Read segments, steered in several ways, in passes of bounded size; wanted: None: the segments' targets."""

    def norm(self, segments: Sequence[Segment]) -> float:
        """Mean norm of the unsteered residual stream at their tokens."""


def asked(layout: Layout, wanted: Wanted | None) -> tuple[Tensor, Tensor]:
    """What is to be said at the real tokens of a layout, as of `Wanted`: [t, K] each."""
    if wanted is None:
        tokens = layout.target[layout.real][:, None]
        return tokens, torch.zeros(tokens.shape)
    numbers = layout.number[layout.real]
    return wanted.tokens[numbers], wanted.logprobs[numbers]


def reading(layout: Layout, said: Sequence[Said]) -> Reading:
    """What was said of a layout."""
    real = layout.real
    return Reading(layout.target[real], layout.category[real], layout.number[real], tuple(said))


class SteeredHere:
    """Implements `SteeredBase` by a model in this process.

    Args:
        rows: of the base's tokens; layer: after which is steered.
    """

    def __init__(self, base: LocalBackend, rows: Sequence[Sequence[int]], layer: int) -> None:
        base.model._module.requires_grad_(False)
        self.pasts = Pasts(base, rows, layer)
        self.device = base.device
        self.width: int = base.config.get_text_config().hidden_size

    def read(
        self, segments: Sequence[Segment], ways: Sequence[Vectors], wanted: Wanted | None = None
    ) -> Iterator[Reading]:
        for packed in pack(self.pasts, segments):
            tokens, logprobs = (tensor.to(self.device) for tensor in asked(packed.layout, wanted))
            yield reading(packed.layout, [self._said(packed, way, tokens, logprobs) for way in ways])

    def norm(self, segments: Sequence[Segment]) -> float:
        total = count = 0.0
        for packed in pack(self.pasts, segments):
            norms = packed.residual()[packed.real].float().norm(dim=-1)
            total, count = total + norms.sum().item(), count + len(norms)
        return total / count

    def _said(self, packed: Pack, way: Vectors, tokens: Tensor, logprobs: Tensor) -> Said:
        logits = steered_logits(self.pasts, packed, way.added(packed))[packed.real]
        loss = divergence(logits, tokens, logprobs)
        return Said(loss.sum(), loss.detach(), logits.detach().argmax(-1))
