import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.discovery.vectors.segments import Segment
from lm_eval_hybrid.discovery.vectors.steered_model import LocalBatch, LocalSteeredModel
from lm_eval_hybrid.discovery.vectors.trainer import EpochMetrics, LossFunction, TrainConfig, TrainTask, VectorTrainer
from tests.discovery.naive_steering import LATENTS, WIDTH, backend_of, rows_of_tokens, some_segments

CONFIG = TrainConfig(epochs=4, batch=1, patience=10, seed=3)
Loss = Callable[[Tensor, LocalBatch], Tensor]


class Interrupted(Exception):
    pass


def cross_entropy(logits: Tensor, batch: LocalBatch) -> Tensor:
    return F.cross_entropy(logits, batch.segments.target[batch.real], reduction="none")


def losses_of(steering: Callable[[LocalBatch], Tensor], loss: Loss) -> LossFunction:
    """The loss of a llama on the rows of tokens, with a batch's `steering` added after layer 1."""
    model = LocalSteeredModel(backend_of("llama"), rows_of_tokens(), 1)

    def losses(segments: Sequence[Segment]) -> Iterator[Tensor]:
        for batch in model.batches(segments):
            yield loss(model.logits(batch, steering(batch))[batch.real], batch).sum()

    return losses


def task_of(loss: Loss = cross_entropy, rate: float = 0.05) -> TrainTask:
    """A vector for each category and a shift that all share; the last row with several tokens is held out."""
    vectors, shift = (torch.zeros(size, requires_grad=True) for size in ((LATENTS, WIDTH), (WIDTH,)))
    segments = some_segments(rows_of_tokens())
    return TrainTask(
        name="both",
        parameters={"vectors": vectors, "shift": shift},
        rates={"shift": rate / 10, "vectors": rate},
        train=[segment for segment in segments if segment.row != 2],
        held_out=[segment for segment in segments if segment.row == 2],
        loss=losses_of(lambda batch: F.embedding(batch.category, vectors) + shift, loss),
    )


def run(
    folder: Path, loss: Loss = cross_entropy, config: TrainConfig = CONFIG, rate: float = 0.05
) -> tuple[list[EpochMetrics], TrainTask]:
    """Train with objects of its own: only the folder is shared with other runs."""
    task = task_of(loss, rate)
    return VectorTrainer(task, config, folder).run(), task


def after(calls: int, end: Callable[[], None], of: Loss = cross_entropy) -> Loss:
    """A loss that calls `end` after so many calls."""
    made: list[int] = []

    def loss(logits: Tensor, batch: LocalBatch) -> Tensor:
        made.append(1)
        if len(made) > calls:
            end()
        return of(logits, batch)

    return loss


def interrupt() -> None:
    raise Interrupted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def values(task: TrainTask) -> list[Tensor]:
    return [tensor.detach() for tensor in task.parameters.values()]


def assert_same(one: tuple[list[EpochMetrics], TrainTask], other: tuple[list[EpochMetrics], TrainTask]) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(values(one[1]), values(other[1]), strict=True))


def test_training_lowers_both_losses_and_returns_its_curve(tmp_path: Path) -> None:
    curve, task = run(tmp_path)
    assert [point.epoch for point in curve] == [0, 1, 2, 3, 4]
    assert curve[0].loss is None and curve[0].norm == 0
    assert curve[4].loss < curve[1].loss
    assert min(point.held_out for point in curve) < curve[0].held_out
    assert all(point.norm > 0 for point in curve[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["both.checkpoint.safetensors"]
    assert values(task)[0].norm() > values(task)[1].norm() > 0  # each parameter has its own rate, by name


# An epoch has three steps of one pass each and a pass over the held-out data, as has the initialization.
@pytest.mark.parametrize("calls", [0, 1, 3, 4, 5, 8, 14, 16])
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path, calls: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", after(calls, interrupt))
    assert_same(run(tmp_path / "cut"), whole)


def test_a_training_killed_several_times_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    ends = []
    for calls in (2, 6, 1, 7):
        process = get_context("fork").Process(target=run, args=(tmp_path / "cut", after(calls, kill)))
        process.start()
        process.join(60)
        ends.append(process.exitcode)
    assert ends == [-signal.SIGKILL] * 4
    assert_same(run(tmp_path / "cut"), whole)


def test_training_without_kept_prefixes_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    monkeypatch.setattr("lm_eval_hybrid.discovery.vectors.segments.CACHE_BYTES", 0)
    assert_same(run(tmp_path / "bare"), whole)


def test_a_finished_training_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert_same(run(tmp_path, after(0, interrupt)), whole)


def test_the_seed_determines_the_order(tmp_path: Path) -> None:
    one, other = (run(tmp_path / str(seed), config=replace(CONFIG, seed=seed)) for seed in (3, 4))
    assert one[0][0] == other[0][0] and one[0][1:] != other[0][1:]


def scripted(held_out: list[float]) -> Loss:
    """The training loss as usual, with these values as the held-out loss."""
    values = iter(held_out)

    def loss(logits: Tensor, batch: LocalBatch) -> Tensor:
        found = cross_entropy(logits, batch)
        return found if torch.is_grad_enabled() else torch.full_like(found, next(values))

    return loss


@pytest.mark.parametrize(
    "held_out, best",
    [
        ([5.0, 4.0, 4.5, 3.0, 3.0, 3.5], 3),
        ([5.0, 5.5, 6.0], 0),
        ([5.0, 4.0, math.nan, math.nan], 1),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path: Path, held_out: list[float], best: int) -> None:
    config = replace(CONFIG, epochs=12, patience=2)
    curve, task = run(tmp_path / "a", scripted(held_out), config)
    assert [point.held_out for point in curve] == pytest.approx(held_out, nan_ok=True)
    with pytest.raises(Interrupted):  # in the epoch after the best one
        run(tmp_path / "b", after(4 * best + 2, interrupt, scripted(held_out)), config)
    kept = load_file(tmp_path / "b" / "both.checkpoint.safetensors")
    for name, tensor in task.parameters.items():
        assert torch.equal(tensor, kept[name]) and torch.equal(tensor, kept[f"best.{name}"])


def test_no_epochs_leave_the_initial_values(tmp_path: Path) -> None:
    curve, task = run(tmp_path, config=replace(CONFIG, epochs=0))
    assert [(point.epoch, point.loss) for point in curve] == [(0, None)]
    assert not any(tensor.any() for tensor in values(task))
    assert_same(run(tmp_path, config=replace(CONFIG, epochs=0)), (curve, task))


def test_the_learning_rate_follows_a_cosine(tmp_path: Path) -> None:
    """If the gradient never changes, each of Adam's steps is as long as the learning rate."""
    at: list[float] = []
    shift = torch.zeros(WIDTH, requires_grad=True)

    def pull(logits: Tensor, batch: LocalBatch) -> Tensor:
        at.append(float(shift.detach()[0]))
        return 1000 * shift.sum().expand(int(batch.real.sum())) + 0 * logits.sum()

    task = task_of(pull)
    losses = losses_of(lambda batch: shift.expand(*batch.segments.target.shape, -1), pull)
    task = replace(task, parameters={"shift": shift}, loss=losses)
    VectorTrainer(task, CONFIG, tmp_path).run()
    steps = [a - b for a, b in pairwise(at) if a != b]
    expected = [0.005 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    torch.testing.assert_close(torch.tensor(steps), torch.tensor(expected), rtol=1e-3, atol=1e-7)


def test_a_step_of_several_passes_is_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, epochs=1, batch=3)
    one = run(tmp_path / "one", config=config)
    monkeypatch.setattr("lm_eval_hybrid.discovery.vectors.segments.TOKENS", 5)
    several = run(tmp_path / "several", config=config)
    assert several[0][1].held_out == pytest.approx(one[0][1].held_out, rel=1e-5) != one[0][0].held_out
    assert several[0][1].loss == pytest.approx(one[0][1].loss, rel=1e-5)


def spoiled(whole: bytes, tensors: dict[str, Tensor], curve: str) -> dict[str, bytes | tuple]:
    """Files that are not a checkpoint of this training: bytes, or (tensors, metadata)."""
    cut = {name: tensor for name, tensor in tensors.items() if name != "adam.shift.exp_avg"}
    return {
        "empty": b"",
        "torn": whole[: len(whole) // 2],
        "no header": b"\xff" * 64,
        "fitted vectors": (tensors, None),
        "no tensor": ({}, {"curve": curve}),
        "one missing": (cut, {"curve": curve}),
        "one more": (tensors | {"more": torch.zeros(1)}, {"curve": curve}),
        "another shape": (tensors | {"shift": torch.zeros(2 * WIDTH)}, {"curve": curve}),
        "no curve": (tensors, {"curve": "[]"}),
        "no points": (tensors, {"curve": "[1, 2]"}),
        "no list": (tensors, {"curve": "3"}),
        "no JSON": (tensors, {"curve": "{"}),
        "other fields": (tensors, {"curve": '[{"epoch": 0}]'}),
        "an epoch short": (tensors, {"curve": "[" + curve[curve.index(", {") + 2 :]}),
    }


@pytest.mark.parametrize("what", spoiled(b"", {}, "[{}, {}]"))
def test_a_file_that_is_not_its_checkpoint_is_ignored_and_replaced(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors import safe_open

    config = replace(CONFIG, epochs=1)
    whole = run(tmp_path, config=config)
    path = tmp_path / "both.checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        curve = file.metadata()["curve"]
    content = spoiled(path.read_bytes(), load_file(path), curve)[what]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        tensors, metadata = content
        save_file(tensors, path, metadata)
    assert_same(run(tmp_path, config=config), whole)
    assert "training starts over" in caplog.text
    caplog.clear()
    assert_same(run(tmp_path, after(0, interrupt), config), whole)
    assert not caplog.text
