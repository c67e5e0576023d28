"""The vectors that one seed's fit found: their files, and what they change at held-out disagreements."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import SteeredModel, SteeringVectors
from lm_eval_hybrid.discovery.vectors.trainer import EpochMetrics

TENSORS_FILE, CURVES_FILE = "vectors.safetensors", "curves.json"
_NETWORK = "network."


@dataclass(frozen=True)
class FittedVectors:
    """Bias, behavior vectors and coefficient network, float32 on the CPU.

    Attributes:
        bias: [d_base]; vectors: [latents, d_base].
        network: None for the recipe `likelihood`.
        curves: training curves of `bias` and `vectors`.
    """

    bias: Tensor
    vectors: Tensor
    network: CoefficientNetwork | None
    curves: dict[str, list[EpochMetrics]]

    def save(self, folder: Path) -> None:
        """Write vectors.safetensors and curves.json into a folder."""
        tensors = {"bias": self.bias, "vectors": self.vectors}
        if self.network is not None:
            tensors |= {f"{_NETWORK}{name}": tensor for name, tensor in asdict(self.network).items()}
        curves = {name: [asdict(metrics) for metrics in curve] for name, curve in self.curves.items()}
        write_file(folder / CURVES_FILE, json.dumps(curves).encode())
        write_file(folder / TENSORS_FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    @classmethod
    def load(cls, folder: Path) -> "FittedVectors":
        """The vectors that were saved in a folder."""
        tensors = load_file(folder / TENSORS_FILE)
        network = {name.removeprefix(_NETWORK): t for name, t in tensors.items() if name.startswith(_NETWORK)}
        curves = json.loads((folder / CURVES_FILE).read_bytes())
        return cls(
            tensors["bias"],
            tensors["vectors"],
            CoefficientNetwork(**network) if network else None,
            {name: [EpochMetrics(**metrics) for metrics in curve] for name, curve in curves.items()},
        )

    @property
    def best_loss(self) -> float:
        """The smallest held-out loss of the vectors' training."""
        return min(metrics.held_out for metrics in self.curves["vectors"])


@dataclass(frozen=True)
class VectorEffects:
    """Effects at held-out disagreements, where the unsteered base by definition misses the thinking model's token.

    Attributes:
        gates: [latents] int64, number of disagreements of each category.
        bias_hits, hits: [latents] int64, at how many of them the base predicts the thinking model's token, steered by
            the bias alone, and by the bias and the category's vector (times the network's coefficient, if any).
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
        """For each latent, the share of its disagreements that its vector gains over the bias; None without any."""
        gained = (self.hits - self.bias_hits).tolist()
        return [hits / count if count else None for hits, count in zip(gained, self.gates.tolist(), strict=True)]


@torch.no_grad()
def measure_effects(model: SteeredModel, segments: Sequence[Segment], fitted: FittedVectors) -> VectorEffects:
    """Steer the base at held-out disagreements.

    Args:
        segments: the disagreements, at least one, each a single token.
    """
    device, latents = model.device, len(fitted.vectors)
    bias, vectors = fitted.bias.to(device), fitted.vectors.to(device)
    network = None if fitted.network is None else fitted.network.to(device)
    ways = {
        "base": SteeringVectors(torch.zeros_like(bias)),
        "bias": SteeringVectors(bias),
        "all": SteeringVectors(bias, vectors, network),
    }
    gates = torch.zeros(latents, dtype=torch.int64)
    hits = {name: gates.clone() for name in ways}
    losses = dict.fromkeys(ways, 0.0)
    for batch in model.forward(segments, list(ways.values())):
        gates += batch.category.bincount(minlength=latents)
        for name, output in zip(ways, batch.outputs, strict=True):
            losses[name] += output.loss.item()
            hit = output.choice.cpu() == batch.target
            hits[name] += batch.category[hit].bincount(minlength=latents)
    mean = {name: loss / len(segments) for name, loss in losses.items()}
    return VectorEffects(gates, hits["bias"], hits["all"], mean["all"], mean["bias"], mean["base"])
