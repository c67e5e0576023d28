"""What memory there is: of this machine, or of one that is described in a file.

The disk is not counted: weights that are offloaded there are read from the model's own files, where they are already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml
from accelerate.utils import convert_file_size_to_int
from pydantic import BaseModel, ConfigDict, ValidationError

from lm_eval_hybrid.bundles.manifest import first_problem
from lm_eval_hybrid.common.errors import HybridError

CPU = "cpu"


@dataclass(frozen=True)
class Machine:
    """Memory that is free.

    Attributes:
        gpus: bytes of each CUDA device, in their order.
        memory: bytes of main memory, available without swapping.
    """

    gpus: tuple[int, ...]
    memory: int

    @classmethod
    def here(cls) -> "Machine":
        """This one, now."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            gpus=tuple(torch.cuda.mem_get_info(i)[0] for i in range(count)),
            memory=psutil.virtual_memory().available,
        )

    @classmethod
    def read(cls, path: Path) -> "Machine":
        """A machine from a YAML file: `gpus: [24GiB, 24GiB]`, `memory: 64GiB`.

        Raises:
            HybridError: the file says something else.
        """
        try:
            given = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            gpus = tuple(convert_file_size_to_int(size) for size in given.gpus)
            return cls(gpus, convert_file_size_to_int(given.memory))
        except ValidationError as error:
            found = first_problem(error)
        except (yaml.YAMLError, ValueError) as error:
            found = str(error)
        raise HybridError(
            f"{path}: must describe a machine; found: {found}; write gpus: [24GiB, 24GiB] and memory: 64GiB"
        )

    @property
    def rooms(self) -> Mapping[str, int]:
        """Bytes by the name of the device, GPUs first."""
        return {**{f"cuda:{i}": size for i, size in enumerate(self.gpus)}, CPU: self.memory}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    gpus: list[str | int] = []
    memory: str | int
