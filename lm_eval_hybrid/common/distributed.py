"""Processes that share the work in one folder, as torchrun or accelerate start them.

Not accelerate's PartialState: it would use NCCL where there are GPUs, whose barriers end after minutes, while a stage
that one process makes alone may take days.
"""

import os
from dataclasses import dataclass

_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


@dataclass(frozen=True)
class Ranks:
    """This process's number, from 0, the number of processes, and this process's number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        """The numbers in the variables that torchrun and accelerate set; a single process if there are none."""
        return cls(*(int(os.environ.get(name, value)) for name, value in _VARIABLES))

    @property
    def first(self) -> bool:
        """Whether this process does the work that is not shared."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world == 1:
            return
        from datetime import timedelta

        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=timedelta(days=7))
        distributed.barrier()
