"""Stages of a discovery run: each in a folder of its own, named after what decides its content.

So nothing is done twice, whatever ended the run before; and after a change of the recipe only that which depends on it
is done again, beside what was there. What a stage is not finished with, it goes on with.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import locked, write_file

DONE_FILE = "done.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of the work.

    Attributes:
        name: what it makes.
        folder: where it is made.
        digest: sha256 (hex) of all that decides its content.
    """

    name: str
    folder: Path
    digest: str

    @property
    def done(self) -> bool:
        return (self.folder / DONE_FILE).is_file()

    @property
    def begun(self) -> bool:
        return self.folder.is_dir()

    def run(self, make: Callable[[Path], None]) -> Path:
        """Its folder, made by `make` unless it is there; `make` finds in it what a former run has left."""
        if self.done:
            log.info("%s: there already (%s)", self.name, self.folder.name)
            return self.folder
        log.info("%s: %s %s", self.name, "going on in" if self.begun else "begins in", self.folder.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            make(self.folder)
            write_file(self.folder / DONE_FILE, json.dumps({"stage": self.name, "digest": self.digest}).encode())
        except OSError as error:
            where = self.folder if error.filename is None else error.filename
            raise HybridError(
                f"{where}: {self.name} needs room to be written; found {error.strerror or error}; make some and run "
                "the same command again, it goes on from there"
            ) from None
        return self.folder


@dataclass(frozen=True)
class Workshop:
    """A folder of stages."""

    folder: Path

    def stage(self, name: str, version: int, decides: Mapping[str, Any], *after: Stage) -> Stage:
        """A stage.

        Args:
            version: of the code that makes it, raised whenever it makes something else of the same.
            decides: its settings, as JSON can hold them.
            after: the stages that it reads.
        """
        content = [name, version, decides, [stage.digest for stage in after]]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return Stage(name, self.folder / f"{name}-{digest[:12]}", digest)

    def held(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder.

        Raises:
            HybridError: another run is at work in it, or it cannot be written.
        """
        return locked(self.folder, "--work")
