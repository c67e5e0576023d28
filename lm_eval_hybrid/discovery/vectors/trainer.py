"""Trains a few vectors by gradient descent with the base frozen, and keeps the best epoch.

Adam with a cosine learning-rate schedule. Each epoch ends with the loss on held-out data; training stops when that has
not improved for some epochs. The order of each epoch is drawn from its number and every epoch is saved, so that an
interrupted training ends in the same bits as one that was not.
"""

import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import SteeredModel, SteeringVectors

log = logging.getLogger(__name__)
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter

LossFunction = Callable[[Sequence[Segment]], Iterator[Tensor]]
"""Segments -> the sum of their tokens' losses, [] float32, batch by batch, with gradients to the parameters."""


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics after an epoch.

    Attributes:
        epoch: from 1; 0 is the initialization.
        loss: mean loss per token on the training data during the epoch, in nats; None for epoch 0.
        held_out: mean loss per token on held-out data.
        norm: mean norm of the trained vectors.
    """

    epoch: int
    loss: float | None
    held_out: float
    norm: float


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a training.

    Attributes:
        epochs: maximum number of epochs.
        batch: rows (traces) in a step.
        patience: epochs without a better held-out loss after which training stops.
        seed: of the order of the rows.
    """

    epochs: int
    batch: int
    patience: int
    seed: int


@dataclass(frozen=True)
class TrainTask:
    """The parameters to train, and the data.

    Attributes:
        name: also names the checkpoint, `NAME.checkpoint.safetensors`.
        parameters: by name; trained in place. `EpochMetrics.norm` is the first one's.
        rates: learning rate of each.
        train, held_out: segments.
    """

    name: str
    parameters: Mapping[str, Tensor]
    rates: Mapping[str, float]
    train: Sequence[Segment]
    held_out: Sequence[Segment]
    loss: LossFunction


class VectorTrainer:
    """One training, resumed from its checkpoint in `folder` if there is one."""

    def __init__(self, task: TrainTask, config: TrainConfig, folder: Path) -> None:
        self._task, self._config = task, config
        self._path = folder / f"{task.name}.checkpoint.safetensors"
        groups = [{"params": [tensor], "name": name} for name, tensor in task.parameters.items()]
        self._optimizer = torch.optim.Adam(groups)
        self._best = self._values()
        self.curve: list[EpochMetrics] = []

    def run(self) -> list[EpochMetrics]:
        """Train, and leave the best epoch's values in the parameters."""
        if not self._restore():
            self._record(0, None)
        with tqdm(total=self._config.epochs, initial=len(self.curve) - 1, desc=self._task.name, unit="epoch") as bar:
            while not self._finished():
                loss = self._train_epoch(len(self.curve))
                self._record(len(self.curve), loss)
                bar.set_postfix(loss=f"{loss:.4f}", held_out=f"{self.curve[-1].held_out:.4f}", refresh=False)
                bar.update()
        with torch.no_grad():
            for name, tensor in self._task.parameters.items():
                tensor.copy_(self._best[name])
        return self.curve

    def _finished(self) -> bool:
        done = len(self.curve) - 1
        return done >= self._config.epochs or done - self._best_epoch() >= self._config.patience

    def _best_epoch(self) -> int:
        return min(self.curve, key=lambda metrics: metrics.held_out).epoch

    def _values(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._task.parameters.items()}

    def _batches(self, epoch: int) -> list[list[Segment]]:
        by_row: dict[int, list[Segment]] = {}
        for segment in self._task.train:
            by_row.setdefault(segment.row, []).append(segment)
        rows = list(by_row)
        random.Random(f"{self._config.seed}:{self._task.name}:{epoch}").shuffle(rows)
        size = self._config.batch
        return [[s for row in rows[i : i + size] for s in by_row[row]] for i in range(0, len(rows), size)]

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training data. Returns the mean loss per token during the pass."""
        batches = self._batches(epoch)
        total = count = 0.0
        for number, batch in enumerate(batches):
            tokens = sum(len(segment.targets) for segment in batch)
            self._optimizer.zero_grad()
            for loss_sum in self._task.loss(batch):
                loss = loss_sum / tokens
                loss.backward()
                total += loss.item() * tokens
            count += tokens
            progress = ((epoch - 1) * len(batches) + number) / (self._config.epochs * len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = self._task.rates[group["name"]] * (1 + math.cos(math.pi * progress)) / 2
            self._optimizer.step()
        return total / count

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        tokens = sum(len(segment.targets) for segment in self._task.held_out)
        return sum(loss_sum.item() for loss_sum in self._task.loss(self._task.held_out)) / tokens

    def _record(self, epoch: int, loss: float | None) -> None:
        first = next(iter(self._task.parameters.values())).detach()
        norm = first.reshape(-1, first.shape[-1]).norm(dim=-1).mean().item()
        self.curve.append(EpochMetrics(epoch, loss, self._held_out_loss(), norm))
        if self._best_epoch() == epoch:
            self._best = self._values()
        self._save()

    def _save(self) -> None:
        tensors = {f"best.{name}": tensor for name, tensor in self._best.items()}
        for name, tensor in self._task.parameters.items():
            tensors[name] = tensor.detach()
            for key, value in self._optimizer.state[tensor].items():
                tensors[f"adam.{name}.{key}"] = value
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_file(self._path, save(tensors, {"curve": json.dumps([asdict(metrics) for metrics in self.curve])}))

    def _restore(self) -> bool:
        """Continue from the checkpoint. False, with nothing changed, if there is none or it is not this training's."""
        try:
            with safe_open(self._path, framework="pt") as file:
                curve = [EpochMetrics(**metrics) for metrics in json.loads(file.metadata()["curve"])]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, TypeError, KeyError, ValueError):
            curve, tensors = [], {}
        complete = curve and [metrics.epoch for metrics in curve] == list(range(len(curve)))
        if not complete or {name: tensor.shape for name, tensor in tensors.items()} != self._shapes(len(curve) > 1):
            log.warning("%s: not a checkpoint of this training; training starts over", self._path)
            return False
        self.curve = curve
        with torch.no_grad():
            for name, tensor in self._task.parameters.items():
                tensor.copy_(tensors[name])
                self._best[name] = tensors[f"best.{name}"].to(tensor.device)
                if len(curve) > 1:
                    state = {key: tensors[f"adam.{name}.{key}"] for key in _ADAM}
                    moved = {k: v if k == "step" else v.to(tensor.device) for k, v in state.items()}
                    self._optimizer.state[tensor].update(moved)
        return True

    def _shapes(self, stepped: bool) -> dict[str, torch.Size]:
        """The shapes that `_save` writes, before or after Adam's first step."""
        shapes: dict[str, torch.Size] = {}
        for name, tensor in self._task.parameters.items():
            shapes |= {name: tensor.shape, f"best.{name}": tensor.shape}
            if stepped:
                shapes |= {f"adam.{name}.{key}": torch.Size() if key == "step" else tensor.shape for key in _ADAM}
        return shapes


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
        """For each latent, the hit rate with bias and vector minus that with the bias alone, if any."""
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
