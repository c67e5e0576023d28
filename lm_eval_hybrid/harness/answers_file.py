"""Answers kept on disk as they are finished, so that an interrupted run makes none of them twice.

A line an answer, JSON, after a first line that says whose they are. Nothing is unpickled: the folder may come from
elsewhere. Processes side by side write files of their own, and read everybody's.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA, Generation, TokenRecord

SUFFIX = ".answers.jsonl"


def key(context: str, settings: dict[str, Any], repeat: int) -> str:
    """What says which request an answer is of."""
    asked = json.dumps([str(context), settings, repeat], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()


class AnswersFile:
    """The answers of one arm.

    Args:
        folder: of the arm.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self._path = folder / f"rank{rank}{SUFFIX}"
        self._answers: dict[str, Generation] = {}

    def open(self, identity: dict[str, Any]) -> None:
        """Read what is there, by whatever process; it must be of the run with this identity (JSON data).

        Raises:
            HybridError: it is of another, or not what a run leaves.
        """
        head = {"schema_version": TOKENS_SCHEMA, "identity": json.loads(json.dumps(identity, default=str))}
        self._answers = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            lines = (value for _, value in jsonl.rows(path, torn=True))
            if next(lines, head) != head:
                raise HybridError(
                    f"{path}: unfinished answers must be of this very run; found another version's, bundle's, pair's "
                    "or policy's; finish that run as it was begun, or name another folder"
                )
            for line in lines:
                self._keep(path, line)
        if self._path.exists():
            jsonl.cut_torn(self._path)
        if not self._path.exists() or not self._path.stat().st_size:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(head)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Generation | None:
        """The answer that is kept of a request, if any."""
        return self._answers.get(key)

    def add(self, key: str, generation: Generation) -> None:
        """Write an answer down."""
        self._write({"key": key, **asdict(generation)})

    def remove(self) -> None:
        """Remove every process's answers: the run is finished."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink()

    def _keep(self, path: Path, line: Any) -> None:
        try:
            records = tuple(TokenRecord(**record) for record in line["records"])
            self._answers[line["key"]] = Generation(line["text"], records, line["finish"])
        except (TypeError, KeyError) as error:
            raise HybridError(f"{path}: must hold answers as a run leaves them; found others; delete it") from error

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
