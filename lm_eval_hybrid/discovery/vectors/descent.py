"""Gradient descent on a few vectors, the base frozen: epochs that can be gone on from, the best of them kept.

Adam, its rate falling as a cosine. After each epoch the loss on held-out data is measured; once it has not improved
for some epochs the descent ends, and what counts is the best epoch. Each epoch's order is drawn by its own number; so
a descent that was interrupted ends in the same bits as one that was not.
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
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.discovery.vectors.segments import Segment

log = logging.getLogger(__name__)
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of a parameter

Losses = Callable[[Sequence[Segment]], Iterator[Tensor]]
"""Segments -> the sums of their tokens' losses, [] float32, pass by pass; gradients reach the parameters."""


@dataclass(frozen=True)
class Point:
    """An epoch of a descent.

    Attributes:
        epoch: from 1; 0 is the start.
        loss: mean over the learned tokens, in nats; None at the start.
        held_out: the same over held-out ones.
        norm: mean norm of the vectors that are learned.
    """

    epoch: int
    loss: float | None
    held_out: float
    norm: float


@dataclass(frozen=True)
class Rules:
    """How a descent goes.

    Attributes:
        epochs: passes over the segments at most.
        batch: rows (traces) of a step.
        patience: epochs without a better held-out loss after which it ends.
        seed: of the order.
    """

    epochs: int
    batch: int
    patience: int
    seed: int


@dataclass(frozen=True)
class Task:
    """What is learned, from what.

    Attributes:
        name: of the descent, also of the file (`NAME.descent.safetensors`) that it goes on from.
        parameters: by name; changed in place. The first is the one whose rows' norms are told.
        rates: Adam's learning rate of each.
        learned, held_out: segments.
        losses: see `Losses`.
    """

    name: str
    parameters: Mapping[str, Tensor]
    rates: Mapping[str, float]
    learned: Sequence[Segment]
    held_out: Sequence[Segment]
    losses: Losses


class Descent:
    """One descent, resumed from `folder` where it was begun.

    Args:
        folder: keeps the last epoch.
    """

    def __init__(self, task: Task, rules: Rules, folder: Path) -> None:
        self._task, self._rules = task, rules
        self._path = folder / f"{task.name}.descent.safetensors"
        groups = [{"params": [tensor], "name": name} for name, tensor in task.parameters.items()]
        self._optimizer = torch.optim.Adam(groups)
        self._best = {name: tensor.detach().clone() for name, tensor in task.parameters.items()}
        self.curve: list[Point] = []

    def run(self) -> list[Point]:
        """Descends, and leaves the best epoch's values in the parameters."""
        if not self._resume():
            self._note(0, None)
        with tqdm(total=self._rules.epochs, initial=len(self.curve) - 1, desc=self._task.name, unit="epoch") as bar:
            while not self._ended():
                loss = self._epoch(len(self.curve))
                self._note(len(self.curve), loss)
                bar.set_postfix(loss=f"{loss:.4f}", held_out=f"{self.curve[-1].held_out:.4f}", refresh=False)
                bar.update()
        with torch.no_grad():
            for name, tensor in self._task.parameters.items():
                tensor.copy_(self._best[name])
        return self.curve

    def _ended(self) -> bool:
        done = len(self.curve) - 1
        return done >= self._rules.epochs or done - self._best_epoch() >= self._rules.patience

    def _best_epoch(self) -> int:
        return min(self.curve, key=lambda point: point.held_out).epoch

    def _batches(self, epoch: int) -> list[list[Segment]]:
        by_row: dict[int, list[Segment]] = {}
        for segment in self._task.learned:
            by_row.setdefault(segment.row, []).append(segment)
        rows = list(by_row)
        random.Random(f"{self._rules.seed}:{self._task.name}:{epoch}").shuffle(rows)
        size = self._rules.batch
        return [[s for row in rows[i : i + size] for s in by_row[row]] for i in range(0, len(rows), size)]

    def _epoch(self, epoch: int) -> float:
        """One pass over the learned segments; their mean loss, as it was on the way."""
        batches = self._batches(epoch)
        total = count = 0.0
        for number, some in enumerate(batches):
            tokens = sum(len(segment.targets) for segment in some)
            self._optimizer.zero_grad()
            for losses in self._task.losses(some):
                loss = losses / tokens
                loss.backward()
                total += loss.item() * tokens
            count += tokens
            share = ((epoch - 1) * len(batches) + number) / (self._rules.epochs * len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = self._task.rates[group["name"]] * (1 + math.cos(math.pi * share)) / 2
            self._optimizer.step()
        return total / count

    @torch.no_grad()
    def _held_out(self) -> float:
        tokens = sum(len(segment.targets) for segment in self._task.held_out)
        return sum(losses.item() for losses in self._task.losses(self._task.held_out)) / tokens

    def _note(self, epoch: int, loss: float | None) -> None:
        first = next(iter(self._task.parameters.values())).detach()
        norm = first.reshape(-1, first.shape[-1]).norm(dim=-1).mean().item()
        self.curve.append(Point(epoch, loss, self._held_out(), norm))
        if self._best_epoch() == epoch:
            self._best = {name: tensor.detach().clone() for name, tensor in self._task.parameters.items()}
        self._save()

    def _save(self) -> None:
        tensors = {f"best.{name}": tensor for name, tensor in self._best.items()}
        for name, tensor in self._task.parameters.items():
            tensors[name] = tensor.detach()
            for key, value in self._optimizer.state[tensor].items():
                tensors[f"adam.{name}.{key}"] = value
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_file(self._path, save(tensors, {"curve": json.dumps([asdict(point) for point in self.curve])}))

    def _resume(self) -> bool:
        """Goes on from what is kept; False, and nothing changed, where that is nothing, or not whole, or another's."""
        try:
            with safe_open(self._path, framework="pt") as file:
                curve = [Point(**point) for point in json.loads(file.metadata()["curve"])]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, TypeError, KeyError, ValueError):
            curve, tensors = [], {}
        whole = curve and [point.epoch for point in curve] == list(range(len(curve)))
        if not whole or {name: tensor.shape for name, tensor in tensors.items()} != self._shapes(len(curve) > 1):
            log.warning("%s: no whole epoch of this descent; it begins anew", self._path)
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
        """What `_save` writes, before and after Adam's first step."""
        shapes = {}
        for name, tensor in self._task.parameters.items():
            shapes |= {name: tensor.shape, f"best.{name}": tensor.shape}
            if stepped:
                shapes |= {f"adam.{name}.{key}": torch.Size() if key == "step" else tensor.shape for key in _ADAM}
        return shapes
