"""Replies of a judge, kept: an interrupted run asks nothing twice."""

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.judge import Judge

REPLIES_FILE = "judge.jsonl"


class CachedJudge(Judge):
    """A judge whose replies are kept in a folder's judge.jsonl, a line each, as they come.

    A line has the sha256 of the judge's identity and the prompt (and, of any reply to it but the first, its number),
    and the reply; one that an interruption tore is cut off.

    Raises:
        HybridError: where the file holds anything else, or cannot be read or written.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        self.identity = judge.identity
        self._judge = judge
        self._path = folder / REPLIES_FILE
        self._known = _read(self._path) if self._path.exists() else {}

    def replies(self, prompts: Sequence[str]) -> Generator[tuple[int, str], None, None]:
        yield from enumerate(self._found([(prompt, 0) for prompt in prompts]))

    def repeated(self, prompts: Sequence[str], repeats: int) -> list[list[str]]:
        """`repeats` replies to each prompt, each asked for by itself; the first is that of `ask`, which it raises like.

        A judge that decodes greedily may repeat itself.
        """
        found = self._found([(prompt, number) for prompt in prompts for number in range(repeats)])
        return [found[first : first + repeats] for first in range(0, len(found), repeats)]

    def _found(self, asked: Sequence[tuple[str, int]]) -> list[str]:
        """The reply to each prompt that has this number, from 0."""
        keys = [self._key(*one) for one in asked]
        new = {key: prompt for key, (prompt, _) in zip(keys, asked, strict=True) if key not in self._known}
        if new:
            self._ask(new)
        return [self._known[key] for key in keys]

    def _key(self, prompt: str, number: int) -> str:
        decides = [self.identity, prompt, *([number] if number else [])]
        return sha256(json.dumps(decides).encode()).hexdigest()

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
