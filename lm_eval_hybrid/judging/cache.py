"""A judge's replies kept in a file, so that an interrupted run asks nothing twice."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.load import HarnessJudge

REPLIES_FILE = "judge.jsonl"


class CachedJudge:
    """A judge whose replies are appended to a folder's judge.jsonl as they come.

    A line holds the reply and the sha256 of the judge's identity, the prompt and, except for a prompt's first reply,
    the reply's number. A last line that an interruption cut is removed.

    Raises:
        HybridError: the file holds anything else, or cannot be read or written.
    """

    def __init__(self, judge: HarnessJudge, folder: Path) -> None:
        self.identity = judge.identity
        self._judge = judge
        self._path = folder / REPLIES_FILE
        self._known = _read(self._path) if self._path.exists() else {}

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """The first reply to each prompt, in the prompts' order. Raises as `Judge.ask`."""
        return [replies[0] for replies in self.repeated(prompts, 1)]

    def repeated(self, prompts: Sequence[str], repeats: int) -> list[list[str]]:
        """`repeats` replies to each prompt, each from a request of its own. Raises as `Judge.ask`."""
        keys = [[self._key(prompt, number) for number in range(repeats)] for prompt in prompts]
        new = {
            key: prompt
            for prompt, of_prompt in zip(prompts, keys, strict=True)
            for key in of_prompt
            if key not in self._known
        }
        if new:
            self._ask(new)
        return [[self._known[key] for key in of_prompt] for of_prompt in keys]

    def _key(self, prompt: str, number: int) -> str:
        parts = [self.identity, prompt, *([number] if number else [])]
        return sha256(json.dumps(parts).encode()).hexdigest()

    def _ask(self, prompts: dict[str, str]) -> None:
        keys = list(prompts)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                jsonl.cut_torn(self._path)
            with self._path.open("ab") as file:

                def record(position: int, reply: str) -> None:
                    file.write(json.dumps({"key": keys[position], "reply": reply}).encode() + b"\n")
                    file.flush()
                    self._known[keys[position]] = reply

                self._judge.ask(list(prompts.values()), record)
        except OSError as error:
            raise HybridError(
                f"{self._path}: cannot keep replies ({error.strerror or error}); make room, or name another folder"
            ) from error


def _read(path: Path) -> dict[str, str]:
    known = {}
    for number, row in jsonl.rows(path, torn=True):
        if not (
            isinstance(row, dict) and row.keys() == {"key", "reply"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: no reply of a judge: {row!r:.60}; delete the file")
        known[row["key"]] = row["reply"]
    return known
