"""Replies of a judge, kept: an interrupted run asks nothing twice."""

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from lm_eval_hybrid import jsonl
from lm_eval_hybrid.discovery.judge import Judge
from lm_eval_hybrid.errors import HybridError

REPLIES_FILE = "judge.jsonl"


class CachedJudge(Judge):
    """A judge whose replies are kept in a folder's judge.jsonl, a line each, as they come.

    A line has the sha256 of the judge's identity and the prompt, and the reply; one that an interruption tore is
    cut off.

    Raises:
        HybridError: where the file holds anything else, or cannot be read or written.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        self.identity = judge.identity
        self._judge = judge
        self._path = folder / REPLIES_FILE
        self._known = _read(self._path) if self._path.exists() else {}

    def replies(self, prompts: Sequence[str]) -> Generator[tuple[int, str], None, None]:
        keys = [sha256(json.dumps([self.identity, prompt]).encode()).hexdigest() for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        if new:
            self._ask(new)
        yield from enumerate(self._known[key] for key in keys)

    def _ask(self, new: dict[str, str]) -> None:
        keys = list(new)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                jsonl.cut_torn(self._path)
            with self._path.open("ab") as file, closing(self._judge.replies(list(new.values()))) as replies:
                for position, reply in replies:
                    file.write(json.dumps({"key": keys[position], "reply": reply}).encode() + b"\n")
                    file.flush()
                    self._known[keys[position]] = reply
        except OSError as error:
            raise HybridError(
                f"{self._path}: must take the judge's replies; found {error.strerror or error}; make room, or name "
                "another folder"
            ) from error


def _read(path: Path) -> dict[str, str]:
    known = {}
    for number, row in jsonl.rows(path, torn=True):
        if not (
            isinstance(row, dict) and row.keys() == {"key", "reply"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: must be a judge's reply; found {row!r:.60}; delete the file")
        known[row["key"]] = row["reply"]
    return known
