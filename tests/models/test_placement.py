"""Where models go, on imagined machines; and machines, this one and described ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.placement import USABLE_SHARE, Machine, ModelNeed, Placement, PlacementOptions, place_models
from tests.models import shapes

GIB = 2**30
CPU_ONLY = PlacementOptions(devices={"base": "cpu", "thinking": "cpu"})


def machine(*gpus: int, memory: int = 64) -> Machine:
    return Machine(tuple(size * GIB for size in gpus), memory * GIB)


def pair(base: str, thinking: str, rows: int = 8, tokens: int = 2048) -> list[ModelNeed]:
    return [
        ModelNeed("base", shapes.size(base), rows, tokens),
        ModelNeed("thinking", shapes.size(thinking), rows, tokens),
    ]


def check(needs: Sequence[ModelNeed], there: Machine, places: dict[str, Placement]) -> None:
    """Check that no byte is lost, and that no device gets more than its usable share."""
    held: dict[str, int] = {}
    for need in needs:
        # Shares are whole bytes: each device may have one more.
        assert 0 <= sum(places[need.role].parts.values()) - need.total < 16
        for device, size in places[need.role].parts.items():
            held[device] = held.get(device, 0) + size
    for device, size in held.items():
        assert device == "disk" or size <= USABLE_SHARE * there.free[device], device


@pytest.mark.parametrize(
    ("gpus", "base", "thinking", "expected"),
    [
        ((24,), "1.5b", "1.5b", ("cuda:0", "cuda:0")),
        ((24, 24), "1.5b", "1.5b", ("cuda:0", "cuda:0")),
        ((8, 24), "1.5b", "1.5b", ("cuda:1", "cuda:1")),
        ((24, 24), "7b", "7b", ("cuda:0", "cuda:1")),
        ((80,) * 8, "32b", "32b", ("cuda:0", "cuda:1")),
        ((24, 80), "32b", "1.5b", ("cuda:1", "cuda:1")),
        ((24, 76), "32b", "7b", ("cuda:1", "cuda:0")),
        ((24,) * 8, "70b", "1.5b", (None, "cuda:0")),
        ((24,) * 4, "1.5b", "32b", ("cuda:0", None)),
        ((48,) * 8, "70b", "70b", (None, None)),
        ((24,) * 8, "32b", "32b", (None, None)),
    ],
)
def test_pairs_on_gpus(gpus: tuple[int, ...], base: str, thinking: str, expected: tuple[str | None, ...]) -> None:
    there, needs = machine(*gpus), pair(base, thinking)
    places = place_models(needs, there, PlacementOptions())
    assert (places["base"].device, places["thinking"].device) == expected
    check(needs, there, places)


def test_a_split_model_leaves_room_for_its_cache_and_for_the_other_model() -> None:
    there, needs = machine(*(24,) * 8), pair("70b", "1.5b")
    base = place_models(needs, there, PlacementOptions())["base"]
    assert list(base.limits) == list(range(8))
    # All its weights, and for each GPU a layer more than its share, go where the limits let them.
    assert sum(base.limits.values()) >= needs[0].size.weights + 8 * needs[0].size.part
    room = USABLE_SHARE * 24 * GIB
    assert base.limits[1] <= room - needs[0].working / 8
    assert base.limits[0] <= base.limits[1] - needs[1].total + needs[0].working / 8


def test_models_on_the_cpu() -> None:
    needs = pair("7b", "7b")
    assert place_models(needs, machine(), PlacementOptions())["base"].device == "cpu"
    check(needs, machine(), place_models(needs, machine(), CPU_ONLY))
    assert place_models(needs[:1], machine(24), PlacementOptions(devices={"base": "cpu"}))["base"].parts == {
        "cpu": needs[0].total
    }


def test_devices_that_the_user_names_are_kept() -> None:
    needs = pair("1.5b", "1.5b")
    places = place_models(needs, machine(80, 24), PlacementOptions(devices={"base": "cuda:1"}))
    assert (places["base"].device, places["thinking"].device) == ("cuda:1", "cuda:1")
    places = place_models(needs, machine(80, 24), PlacementOptions(devices={"base": "cuda:1", "thinking": "cpu"}))
    assert (places["base"].device, places["thinking"].device) == ("cuda:1", "cpu")
    # The free memory of another kind of device is unknown, so it is not refused.
    assert (
        place_models(needs, machine(), PlacementOptions(devices={"base": "mps", "thinking": "mps"}))["base"].device
        == "mps"
    )


def test_weights_leave_the_gpus_only_on_request() -> None:
    needs, there = pair("32b", "7b", rows=1), machine(24, 24, memory=64)
    with pytest.raises(HybridError):
        place_models(needs, there, PlacementOptions())
    places = place_models(needs, there, PlacementOptions(offload=True, cpu_limit=60 * GIB))
    check(needs, there, places)
    assert "cpu" in places["base"].parts and "disk" not in places["thinking"].parts
    places = place_models(needs, there, PlacementOptions(offload=True))
    check(needs, there, places)
    assert "cpu" not in places["base"].parts and "disk" in places["base"].parts
    places = place_models(needs, there, PlacementOptions(offload=True, cpu_limit=60 * GIB, gpu_limit=2 * GIB))
    assert places["base"].parts["cuda:0"] <= 2 * GIB + needs[0].working


def test_offloading_without_gpus() -> None:
    needs, there = pair("7b", "1.5b", rows=1), machine(memory=8)
    places = place_models(needs, there, PlacementOptions(devices={"base": "cpu", "thinking": "cpu"}, offload=True))
    assert set(places["base"].parts) == {"cpu", "disk"}
    check(needs, there, places)


@pytest.mark.parametrize(
    ("needs", "there", "wishes", "advice"),
    [
        (pair("7b", "7b"), machine(24), PlacementOptions(), "load_in_4bit=True"),
        (pair("1.5b", "1.5b", rows=512), machine(24), PlacementOptions(), "batch_size=64"),
        (
            [replace(need, size=replace(need.size, dtype=torch.float32)) for need in pair("7b", "1.5b", rows=1)],
            machine(24),
            PlacementOptions(),
            "dtype=bfloat16",
        ),
        (
            pair("7b", "7b"),
            machine(24, 24),
            PlacementOptions(devices=dict.fromkeys(("base", "thinking"), "cuda:0")),
            "no device",
        ),
        (pair("32b", "32b"), machine(80, 24, memory=256), PlacementOptions(), "parallelize=True,max_cpu_memory=230GiB"),
        (pair("70b", "70b"), machine(24, memory=16), PlacementOptions(), "base_backend=remote,thinking_backend=remote"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_advice(
    needs: list[ModelNeed], there: Machine, wishes: PlacementOptions, advice: str
) -> None:
    with pytest.raises(HybridError) as caught:
        place_models(needs, there, wishes)
    said = str(caught.value)
    assert advice in said
    assert "base_backend=remote" in said
    assert "needed base" in said and "cuda:0 " in said and "more memory than there is" in said


def test_the_advised_batch_size_fits() -> None:
    with pytest.raises(HybridError, match=r"batch_size=(\d+),") as caught:
        place_models(pair("7b", "7b", rows=100), machine(24, 24), PlacementOptions())
    rows = int(str(caught.value).partition("batch_size=")[2].partition(",")[0])
    place_models(pair("7b", "7b", rows=rows), machine(24, 24), PlacementOptions())
    with pytest.raises(HybridError):
        place_models(pair("7b", "7b", rows=2 * rows), machine(24, 24), PlacementOptions())


def test_this_machine() -> None:
    machine = Machine.local()
    assert 0 < machine.memory <= psutil.virtual_memory().total
    assert machine.free["cpu"] == machine.memory


def test_a_described_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text("gpus: [24GiB, 80GB]\nmemory: 64GiB\n")
    assert Machine.read(path) == Machine(gpus=(24 * 2**30, 80 * 10**9), memory=64 * 2**30)
    assert Machine.read(path).free["cuda:1"] == 80 * 10**9


@pytest.mark.parametrize(
    "text", ["", "gpus: 2", "gpus: [24GiB]", "memory: much", "memory: 1GiB\ngpu: [1GiB]", "memory: ["]
)
def test_other_descriptions_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(text)
    with pytest.raises(HybridError, match="does not describe a machine"):
        Machine.read(path)
