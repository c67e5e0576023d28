"""Stages of a discovery run, each in a folder named after a digest of everything that determines its content.

So finished work is reused whatever ended the last run, a changed recipe redoes only the stages that depend on the
change, in new folders, and an unfinished stage continues where it stopped.
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
    """One step of a run.

    Attributes:
        name: such as `traces` or `sae-4`.
        folder: holds its files.
        digest: sha256 (hex) of its name, code version and settings, and of the stages that it reads.
    """

    name: str
    folder: Path
    digest: str

    @property
    def done(self) -> bool:
        return (self.folder / DONE_FILE).is_file()

    @property
    def started(self) -> bool:
        return self.folder.is_dir()

    def run(self, make: Callable[[Path], object]) -> Path:
        """Run the stage unless it is done, and return its folder.

        Args:
            make: fills the folder, which may hold files of an interrupted run.

        Raises:
            HybridError: the disk is full, or the folder cannot be written.
        """
        if self.done:
            log.info("%s: done already (%s)", self.name, self.folder.name)
            return self.folder
        log.info("%s: %s %s", self.name, "resuming in" if self.started else "starting in", self.folder.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            make(self.folder)
            write_file(self.folder / DONE_FILE, json.dumps({"stage": self.name, "digest": self.digest}).encode())
        except OSError as error:
            path = self.folder if error.filename is None else error.filename
            raise HybridError(
                f"{path}: {self.name} cannot be written ({error.strerror or error}); free some space and run the same "
                "command again, which resumes"
            ) from None
        return self.folder


@dataclass(frozen=True)
class WorkFolder:
    """A folder that holds the stages of one run or of several."""

    folder: Path

    def stage(self, name: str, version: int, settings: Mapping[str, Any], *inputs: Stage) -> Stage:
        """A stage.

        Args:
            version: of the code that runs it; increased when the same settings give another result.
            settings: JSON data.
            inputs: the stages that it reads.
        """
        content = [name, version, settings, [stage.digest for stage in inputs]]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return Stage(name, self.folder / f"{name}-{digest[:12]}", digest)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder.

        Raises:
            HybridError: another run is at work in it, or it cannot be written.
        """
        return locked(self.folder, "--work")
