"""Which device each model goes to: arithmetic over sizes and free memory, so that it also works for other machines.

All models on one GPU if they fit, else a GPU each, else split over the GPUs by layers. Weights leave the GPUs only if
the user asks for it with HFLM's own arguments: to main memory up to `max_cpu_memory`, then to disk. Disk space is not
counted: offloaded weights are read from the model's own files, which are there already.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate.utils import convert_file_size_to_int
from pydantic import BaseModel, ConfigDict, ValidationError

from lm_eval_hybrid.bundles.manifest import first_problem
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.sizes import ModelFootprint

USABLE_SHARE = 0.9
"""Of the free memory: allocators leave gaps, and other programs need some."""

CPU = "cpu"
_SPLIT, _DISK = "split", "disk"
_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The free memory of a machine.

    Attributes:
        gpus: bytes free on each CUDA device, in order.
        memory: bytes of main memory available without swapping.
    """

    gpus: tuple[int, ...]
    memory: int

    @classmethod
    def local(cls) -> "Machine":
        """This machine, now."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = tuple(torch.cuda.mem_get_info(i)[0] for i in range(count))
        return cls(gpus, psutil.virtual_memory().available)

    @classmethod
    def read(cls, path: Path) -> "Machine":
        """A machine from a YAML file: `gpus: [24GiB, 24GiB]`, `memory: 64GiB`.

        Raises:
            HybridError: the file holds anything else.
        """
        try:
            given = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            gpus = tuple(convert_file_size_to_int(size) for size in given.gpus)
            return cls(gpus, convert_file_size_to_int(given.memory))
        except ValidationError as error:
            reason = first_problem(error)
        except (yaml.YAMLError, ValueError) as error:
            reason = str(error)
        raise HybridError(f"{path} does not describe a machine: {reason}; write gpus: [24GiB, 24GiB] and memory: 64GiB")

    @property
    def free(self) -> dict[str, int]:
        """Free bytes by the name of the device, GPUs first."""
        return {**{f"cuda:{i}": size for i, size in enumerate(self.gpus)}, CPU: self.memory}

    @property
    def usable(self) -> dict[str, int]:
        """The bytes of each device that models may take."""
        return {device: int(USABLE_SHARE * size) for device, size in self.free.items()}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    gpus: list[str | int] = []
    memory: str | int


@dataclass(frozen=True)
class ModelNeed:
    """The memory that one model needs.

    Attributes:
        role: `base` or `thinking`.
        rows, tokens: texts read at once, and their length; no rows for a model that is loaded but never read.
    """

    role: str
    size: ModelFootprint
    rows: int
    tokens: int

    @property
    def working(self) -> int:
        """Bytes beside the weights: the KV cache, and the largest pass."""
        return self.size.cache(self.rows, self.tokens) + self.size.passing(self.rows, self.tokens)

    @property
    def total(self) -> int:
        """Bytes."""
        return self.size.weights + self.working


@dataclass(frozen=True)
class PlacementOptions:
    """What the user has decided about devices.

    Attributes:
        devices: by role; a role that is missing may go to any GPU.
        offload: HFLM splits all models over the GPUs, and offloads what does not fit (`parallelize=True`).
        gpu_limit, cpu_limit: most bytes of weights on each GPU, and in main memory.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    offload: bool = False
    gpu_limit: int | None = None
    cpu_limit: int = 0


@dataclass(frozen=True)
class Placement:
    """Where one model goes.

    Attributes:
        device: None where the model is split.
        parts: bytes by device, KV cache and passes included.
        limits: of a split model, the most bytes of weights on each GPU, by its number.
    """

    device: str | None
    parts: Mapping[str, int]
    limits: Mapping[int, int] = field(default_factory=dict)


def place_models(needs: Sequence[ModelNeed], machine: Machine, options: PlacementOptions) -> dict[str, Placement]:
    """The placement of each role's model.

    Raises:
        HybridError: the models do not fit; the message says what they need, what is free, and what would fit.
    """
    missing, placements = _best(needs, machine, options)
    if missing:
        raise HybridError(_misfit(needs, machine, options, missing))
    return placements


def gib(size: float) -> str:
    """A number of bytes as `14.2 GiB`, or below half of one in MiB."""
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 2 else f"{size / 2**20:,.0f} MiB"


def _best(needs: Sequence[ModelNeed], machine: Machine, options: PlacementOptions) -> tuple[int, dict[str, Placement]]:
    """(bytes missing, placements) with the fewest bytes missing, then the fewest models split, the fewest devices."""
    gpus = [f"cuda:{i}" for i in range(len(machine.gpus))]
    anywhere = [*gpus, _SPLIT] if len(gpus) > 1 else gpus or [CPU]

    def choices(need: ModelNeed) -> list[str]:
        fixed = options.devices.get(need.role)
        return [_SPLIT] if options.offload else [fixed] if fixed else anywhere

    def rank(chosen: tuple[str, ...]) -> tuple[int, int, int, int]:
        missing, _, left = _placed(needs, chosen, machine, options)
        return missing, chosen.count(_SPLIT), len(set(chosen)), -left

    chosen = min(itertools.product(*map(choices, needs)), key=rank)
    missing, placements, _ = _placed(needs, chosen, machine, options)
    return missing, placements


def _placed(
    needs: Sequence[ModelNeed], chosen: Sequence[str], machine: Machine, options: PlacementOptions
) -> tuple[int, dict[str, Placement], int]:
    """(bytes missing, placements, bytes left on the fullest device in use) for one choice of devices."""
    free, missing, used = machine.usable, 0, set()
    placements: dict[str, Placement] = {}
    # Split models come last and take what the others leave.
    for need, device in sorted(zip(needs, chosen, strict=True), key=lambda pair: pair[1] == _SPLIT):
        if device == _SPLIT:
            lacking, placements[need.role] = _split(need, free, options)
            missing += lacking
        else:
            placements[need.role] = Placement(device, {device: need.total})
        for part, size in placements[need.role].parts.items():
            used.add(part)
            if part in free:  # not a disk, which holds the weights already, nor another kind of device
                missing += max(0, size - max(0, free[part]))
                free[part] -= size
    return missing, placements, min((free.get(device, 0) for device in used), default=0)


def _split(need: ModelNeed, free: Mapping[str, int], options: PlacementOptions) -> tuple[int, Placement]:
    """(bytes missing, placement) of a model spread over all GPUs, as evenly as their free memory allows."""
    gpus = [device for device in free if device != CPU]
    # Layers are not split, so that a GPU may get one more than its even share.
    room = {gpu: max(0, free[gpu] - need.size.part) for gpu in gpus}
    if options.gpu_limit is not None:
        room = {gpu: min(size, options.gpu_limit + need.working // len(gpus)) for gpu, size in room.items()}
    offloaded = 0
    if options.offload:
        offloaded = min(need.size.weights, max(0, need.total - sum(room.values())))
        if not gpus:  # the KV cache and the passes are in main memory
            room = {CPU: max(0, free[CPU])}
    loaded = need.total - offloaded
    parts = _level(room, loaded)
    missing = loaded - sum(parts.values())
    limits = {
        int(gpu.partition(":")[2]): max(0, free[gpu] - int(need.working * parts[gpu] / max(1, loaded))) for gpu in gpus
    }
    in_memory = min(offloaded, max(0, min(free[CPU] - parts.get(CPU, 0), options.cpu_limit)))
    parts[CPU] = parts.get(CPU, 0) + in_memory
    parts[_DISK] = offloaded - in_memory
    return missing, Placement(None, {device: size for device, size in parts.items() if size}, limits)


def _level(room: Mapping[str, int], size: int) -> dict[str, int]:
    """`size` bytes spread over `room` so that the fullest is as empty as possible; what does not fit is left out."""
    parts, left = {}, size
    for count, device in zip(range(len(room), 0, -1), sorted(room, key=room.__getitem__), strict=True):
        parts[device] = min(room[device], -(-left // count))
        left -= parts[device]
    return {device: parts[device] for device in room}


def _misfit(needs: Sequence[ModelNeed], machine: Machine, options: PlacementOptions, missing: int) -> str:
    needed = ", ".join(
        f"{need.role} {gib(need.total)} (weights {gib(need.size.weights)}, {need.rows} texts at once "
        f"{gib(need.working)})"
        for need in needs
    )
    usable, named = machine.usable, set(options.devices.values())
    listed = [name for name in usable if (name in named if named else name.startswith("cuda") or options.offload)]
    free = ", ".join(f"{name} {gib(usable[name])}" for name in listed or [CPU])
    return (
        f"the models need {gib(missing)} more memory than there is: needed {needed}; usable, which is "
        f"{USABLE_SHARE:.0%} of what is free, {free}; use {', or '.join(_advice(needs, machine, options))}"
    )


def _advice(needs: Sequence[ModelNeed], machine: Machine, options: PlacementOptions) -> list[str]:
    """Arguments with which the models would fit, the most harmless first."""

    def smaller(rows: int, **size: Any) -> list[ModelNeed]:
        return [replace(need, rows=min(rows, need.rows), size=replace(need.size, **size)) for need in needs]

    rows = max(need.rows for need in needs)
    memory = int(USABLE_SHARE * machine.memory)
    tries = [(f"batch_size={rows >> n}", smaller(rows >> n), options) for n in range(1, rows.bit_length())]
    if any(need.size.dtype.itemsize > 2 for need in needs):
        tries.append(("dtype=bfloat16", smaller(rows, dtype=torch.bfloat16), options))
    if all(need.size.bits is None for need in needs):
        tries += [(f"load_in_{bits}bit=True", smaller(rows, bits=bits), options) for bits in (8, 4)]
    if options.devices and machine.gpus:
        tries.append(("no device by name", list(needs), replace(options, devices={})))
    if machine.gpus and not options.cpu_limit:
        spread = replace(options, devices={}, offload=True, cpu_limit=memory)
        tries.append((f"parallelize=True,max_cpu_memory={memory // _GIB}GiB", list(needs), spread))
    fitting = [text for text, changed, given in tries if not _best(changed, machine, given)[0]]
    batch = [text for text in fitting if text.startswith("batch_size")][:1]
    others = [text for text in fitting if not text.startswith("batch_size")]
    least = smaller(1, bits=4, dtype=torch.bfloat16)
    if not fitting and not _best(least, machine, options)[0]:
        others = ["dtype=bfloat16,load_in_4bit=True,batch_size=1"]
    return [*batch, *others[:3], "base_backend=remote,thinking_backend=remote"]
