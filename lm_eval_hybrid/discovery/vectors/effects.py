"""What the fitted vectors do at held-out gates, in all and by category."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.discovery.vectors.fitted import Fitted
from lm_eval_hybrid.discovery.vectors.steered import Vectors
from lm_eval_hybrid.discovery.vectors.vectors import Material


@dataclass(frozen=True)
class Effects:
    """At held-out gates, where the unsteered base never says the thinking model's token.

    Attributes:
        gates: [latents] int64, how many of each category.
        bias_hits, hits: [latents] int64, at how many of them the base says that token, steered by the bias alone, and
            by the bias and the category's vector (times the network's coefficient, where there is one).
        loss, bias_loss, base_loss: mean cross-entropy of that token, in nats: steered, by the bias alone, unsteered.
    """

    gates: Tensor
    bias_hits: Tensor
    hits: Tensor
    loss: float
    bias_loss: float
    base_loss: float

    @property
    def hit_rate(self) -> float:
        return int(self.hits.sum()) / int(self.gates.sum())

    @property
    def bias_hit_rate(self) -> float:
        return int(self.bias_hits.sum()) / int(self.gates.sum())

    def by_category(self) -> list[float | None]:
        """Of each latent the share of its gates that its vector wins over the bias alone; None where it has none."""
        won = (self.hits - self.bias_hits).tolist()
        return [hits / count if count else None for hits, count in zip(won, self.gates.tolist(), strict=True)]


@torch.no_grad()
def measure(material: Material, fitted: Fitted) -> Effects:
    """Steers the base at all held-out gates, of which there must be some; window 1."""
    device = material.base.device
    bias, vectors = fitted.bias.to(device), fitted.vectors.to(device)
    network = None if fitted.network is None else fitted.network.to(device)
    kinds = {
        "base": Vectors(torch.zeros_like(bias)),
        "bias": Vectors(bias),
        "all": Vectors(bias, vectors, network),
    }
    gates = torch.zeros(material.latents, dtype=torch.int64)
    hits = {kind: gates.clone() for kind in kinds}
    losses = dict.fromkeys(kinds, 0.0)
    segments = material.gate_segments(held_out=True)
    for read in material.base.read(segments, list(kinds.values())):
        gates += read.category.bincount(minlength=material.latents)
        for kind, said in zip(kinds, read.said, strict=True):
            losses[kind] += said.total.item()
            hit = said.choice.cpu() == read.target
            hits[kind] += read.category[hit].bincount(minlength=material.latents)
    mean = {kind: loss / len(segments) for kind, loss in losses.items()}
    return Effects(gates, hits["bias"], hits["all"], mean["all"], mean["bias"], mean["base"])
