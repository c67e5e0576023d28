"""Processes that work side by side on one folder, as torchrun or accelerate start them."""

import os
from dataclasses import dataclass

_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


@dataclass(frozen=True)
class Ranks:
    """This process's number, from 0, how many there are, and its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As torchrun and accelerate tell by environment variables; one where nobody does."""
        return cls(*(int(os.environ.get(name, value)) for name, value in _VARIABLES))

    @property
    def first(self) -> bool:
        """Whether this is the process that does what one alone does."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world == 1:
            return
        from datetime import timedelta

        from torch import distributed

        if not distributed.is_initialized():
            # A stage that one process makes alone may take days.
            distributed.init_process_group("gloo", timeout=timedelta(days=7))
        distributed.barrier()
