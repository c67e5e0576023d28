"""Where each model goes, decided from sizes: arithmetic alone, so that it holds for machines that are not here.

On one GPU if all fit there, else a GPU each, else split over the GPUs by layers. Weights leave the GPUs only where the
user asked for it with HFLM's own arguments: to main memory as far as `max_cpu_memory` goes, then to disk.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.devices import CPU, Machine
from lm_eval_hybrid.models.sizes import Size

SHARE = 0.9
"""Of what is free that counts: allocators leave gaps, and others want some."""

_SPLIT, _DISK = "split", "disk"
_GIB = 2**30


@dataclass(frozen=True)
class Need:
    """One model that is to be loaded.

    Attributes:
        role: `base` or `thinking`.
        rows, tokens: texts read at once, and their length; no rows where it is loaded and never read.
    """

    role: str
    size: Size
    rows: int
    tokens: int

    @property
    def working(self) -> int:
        """Bytes beside the weights: keys and values, and the largest pass."""
        return self.size.cache(self.rows, self.tokens) + self.size.passing(self.rows, self.tokens)

    @property
    def total(self) -> int:
        """Bytes."""
        return self.size.weights + self.working


@dataclass(frozen=True)
class Wishes:
    """What the user has settled.

    Attributes:
        devices: by role; one that is not here may go anywhere on the GPUs.
        offload: HFLM splits all models over the GPUs, and puts elsewhere what does not fit (`parallelize=True`).
        gpu_limit, cpu_limit: bytes of weights for each GPU, and in main memory.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    offload: bool = False
    gpu_limit: int | None = None
    cpu_limit: int = 0


@dataclass(frozen=True)
class Place:
    """Where a model goes.

    Attributes:
        device: the one, or None where it is split.
        parts: bytes by device, keys, values and passes included.
        limits: of a split model, bytes of weights that each GPU, by number, takes at most.
    """

    device: str | None
    parts: Mapping[str, int]
    limits: Mapping[int, int] = field(default_factory=dict)


def place(needs: Sequence[Need], machine: Machine, wishes: Wishes) -> dict[str, Place]:
    """Of each role where its model goes.

    Raises:
        HybridError: they do not fit; it says what is needed, what there is, and what would fit.
    """
    missing, places = _best(needs, machine, wishes)
    if missing:
        raise HybridError(_complaint(needs, machine, wishes, missing))
    return places


def usable(machine: Machine) -> dict[str, int]:
    """Bytes of each device that are counted on."""
    return {device: int(SHARE * room) for device, room in machine.rooms.items()}


def gib(size: float) -> str:
    """`14.2 GiB`, or less of it in MiB."""
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 2 else f"{size / 2**20:,.0f} MiB"


def _best(needs: Sequence[Need], machine: Machine, wishes: Wishes) -> tuple[int, dict[str, Place]]:
    """(bytes that are missing, places): what fits before all, then the fewest split, then the fewest devices."""
    gpus = [f"cuda:{i}" for i in range(len(machine.gpus))]
    anywhere = [*gpus, _SPLIT] if len(gpus) > 1 else gpus or [CPU]

    def choices(need: Need) -> list[str]:
        fixed = wishes.devices.get(need.role)
        return [_SPLIT] if wishes.offload else [fixed] if fixed else anywhere

    def rank(chosen: tuple[str, ...]) -> tuple[int, int, int, int]:
        missing, _, left = _tried(needs, chosen, machine, wishes)
        return missing, chosen.count(_SPLIT), len(set(chosen)), -left

    chosen = min(itertools.product(*map(choices, needs)), key=rank)
    missing, places, _ = _tried(needs, chosen, machine, wishes)
    return missing, places


def _tried(
    needs: Sequence[Need], chosen: Sequence[str], machine: Machine, wishes: Wishes
) -> tuple[int, dict[str, Place], int]:
    """(bytes that are missing, places, bytes left on the fullest device in use) of one choice of devices."""
    rooms, missing, used = usable(machine), 0, set()
    places: dict[str, Place] = {}
    # The split ones last: they take what the others leave.
    for need, device in sorted(zip(needs, chosen, strict=True), key=lambda pair: pair[1] == _SPLIT):
        if device == _SPLIT:
            lacking, places[need.role] = _split(need, rooms, wishes)
            missing += lacking
        else:
            places[need.role] = Place(device, {device: need.total})
        for part, size in places[need.role].parts.items():
            used.add(part)
            if part in rooms:  # of other kinds of device nothing is known; on a disk the weights are already
                missing += max(0, size - max(0, rooms[part]))
                rooms[part] -= size
    return missing, places, min((rooms.get(device, 0) for device in used), default=0)


def _split(need: Need, rooms: Mapping[str, int], wishes: Wishes) -> tuple[int, Place]:
    """(bytes that are missing, place) of a model over all GPUs, evenly as far as they have room."""
    gpus = [device for device in rooms if device != CPU]
    # A layer is whole: beside an even share each may get one more.
    free = {gpu: max(0, rooms[gpu] - need.size.part) for gpu in gpus}
    if wishes.gpu_limit is not None:
        free = {gpu: min(room, wishes.gpu_limit + need.working // len(gpus)) for gpu, room in free.items()}
    elsewhere = 0
    if wishes.offload:
        elsewhere = min(need.size.weights, max(0, need.total - sum(free.values())))
        if not gpus:  # what is read and kept is in main memory
            free = {CPU: max(0, rooms[CPU])}
    here = need.total - elsewhere
    parts = _level(free, here)
    missing = here - sum(parts.values())
    limits = {
        int(gpu.partition(":")[2]): max(0, rooms[gpu] - int(need.working * parts[gpu] / max(1, here))) for gpu in gpus
    }
    kept = min(elsewhere, max(0, min(rooms[CPU] - parts.get(CPU, 0), wishes.cpu_limit)))
    parts[CPU] = parts.get(CPU, 0) + kept
    parts[_DISK] = elsewhere - kept
    return missing, Place(None, {device: size for device, size in parts.items() if size}, limits)


def _level(free: Mapping[str, int], size: int) -> dict[str, int]:
    """`size` bytes poured into `free` so that the fullest is as empty as may be; what does not fit is left out."""
    parts, left = {}, size
    for count, device in zip(range(len(free), 0, -1), sorted(free, key=free.__getitem__), strict=True):
        parts[device] = min(free[device], -(-left // count))
        left -= parts[device]
    return {device: parts[device] for device in free}


def _complaint(needs: Sequence[Need], machine: Machine, wishes: Wishes, missing: int) -> str:
    needed = ", ".join(
        f"{need.role} {gib(need.total)} (weights {gib(need.size.weights)}, {need.rows} texts at once "
        f"{gib(need.working)})"
        for need in needs
    )
    rooms, named = usable(machine), set(wishes.devices.values())
    listed = [name for name in rooms if (name in named if named else name.startswith("cuda") or wishes.offload)]
    there = ", ".join(f"{name} {gib(rooms[name])}" for name in listed or [CPU])
    return (
        f"the models must fit into memory; found {gib(missing)} too little: needed {needed}; there is, counting "
        f"{SHARE:.0%} of what is free, {there}; take {', or '.join(_advice(needs, machine, wishes))}"
    )


def _advice(needs: Sequence[Need], machine: Machine, wishes: Wishes) -> list[str]:
    """What would fit, the most harmless first."""

    def smaller(rows: int, **size: Any) -> list[Need]:
        return [replace(need, rows=min(rows, need.rows), size=replace(need.size, **size)) for need in needs]

    rows = max(need.rows for need in needs)
    room = int(SHARE * machine.memory)
    tries = [(f"batch_size={rows >> n}", smaller(rows >> n), wishes) for n in range(1, rows.bit_length())]
    if any(need.size.dtype.itemsize > 2 for need in needs):
        tries.append(("dtype=bfloat16", smaller(rows, dtype=torch.bfloat16), wishes))
    if all(need.size.bits is None for need in needs):
        tries += [(f"load_in_{bits}bit=True", smaller(rows, bits=bits), wishes) for bits in (8, 4)]
    if wishes.devices and machine.gpus:
        tries.append(("no device by name", list(needs), replace(wishes, devices={})))
    if machine.gpus and not wishes.cpu_limit:
        spread = replace(wishes, devices={}, offload=True, cpu_limit=room)
        tries.append((f"parallelize=True,max_cpu_memory={room // _GIB}GiB", list(needs), spread))
    found = [text for text, changed, settled in tries if not _best(changed, machine, settled)[0]]
    batch = [text for text in found if text.startswith("batch_size")][:1]
    others = [text for text in found if not text.startswith("batch_size")]
    least = smaller(1, bits=4, dtype=torch.bfloat16)
    if not found and not _best(least, machine, wishes)[0]:
        others = ["dtype=bfloat16,load_in_4bit=True,batch_size=1"]
    return [*batch, *others[:3], "base_backend=remote,thinking_backend=remote"]
