"""The base on a server, steered at segments of traces: a request a pass, losses and gradients come back."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lm_eval_hybrid.discovery.vectors.segments import Layout, Segment, layouts
from lm_eval_hybrid.discovery.vectors.steered import Reading, Said, Vectors, Wanted, asked, reading
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.portable.steering import divergence, steering


class SteeredThere:
    """Implements `steered.SteeredBase` by a model on a server. Vectors, and what is said, are on the CPU.

    Args:
        rows: of the base's tokens; layer: after which is steered.
    """

    def __init__(self, base: NdifModel, rows: Sequence[Sequence[int]], layer: int) -> None:
        self._base, self._rows, self._layer = base, rows, layer
        self.device = base.device
        text_config = base.config.get_text_config()
        self.width: int = text_config.hidden_size
        self._vocabulary: int = text_config.vocab_size

    def read(
        self, segments: Sequence[Segment], ways: Sequence[Vectors], wanted: Wanted | None = None
    ) -> Iterator[Reading]:
        tensors = [way.tensors for way in ways]
        learned = {name: tensor for name, tensor in tensors[0].items() if tensor.requires_grad}
        if not torch.is_grad_enabled():
            learned = {}
        for layout in layouts(segments, self._vocabulary):
            found = self._ask(layout, tensors, list(learned), wanted)
            said = [Said(loss.sum(), loss, choice) for loss, choice in zip(found["loss"], found["choice"], strict=True)]
            if learned:
                first = said[0]
                said[0] = Said(_leading(first.total, learned, found), first.loss, first.choice)
            yield reading(layout, said)

    def norm(self, segments: Sequence[Segment]) -> float:
        norms = [self._ask(layout, [], [], None)["norm"] for layout in layouts(segments, self._vocabulary)]
        return torch.cat(norms).mean().item()

    def _ask(
        self, layout: Layout, ways: Sequence[dict[str, Tensor]], gradient: list[str], wanted: Wanted | None
    ) -> dict[str, Any]:
        tokens, logprobs = asked(layout, wanted)
        return self._base.fit(
            {
                "ids": [list(self._rows[row][: layout.width]) for row in layout.rows],
                "layer": self._layer,
                "columns": layout.columns,
                "branch": layout.branch,
                "forks": layout.forks,
                "category": layout.category,
                "tokens": tokens,
                "logprobs": logprobs,
                "ways": [{name: tensor.detach() for name, tensor in way.items()} for way in ways],
                "gradient": gradient,
                "steering": steering,
                "divergence": divergence,
            }
        )


def _leading(total: Tensor, learned: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """The same number, through which these gradients reach the tensors."""
    for name, tensor in learned.items():
        total = total + ((tensor - tensor.detach()) * gradients[name]).sum()
    return total
