"""Answers reused from an earlier run: our own answers file, and the guard of the harness's response cache.

Both store the identity of the run that made the answers (bundle, models, policy, version) and refuse any other run.
"""

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA, Generation, TokenRecord

SUFFIX = ".answers.jsonl"
CACHE_KEY = "lm_eval_hybrid.identity"


def request_key(context: str, settings: dict[str, Any], repeat: int) -> str:
    """The key of one request's answer: a sha256 over prompt, generation settings and repeat number."""
    request = json.dumps([str(context), settings, repeat], sort_keys=True, default=str)
    return hashlib.sha256(request.encode()).hexdigest()


class AnswersFile:
    """The finished answers of one arm, appended as JSON lines so that an interrupted run repeats none of them.

    The first line holds the run's identity. Each process appends to a file of its own and reads those of all. Nothing
    is unpickled: the folder may come from another lab.

    Args:
        folder: the arm's folder.
        rank: this process's rank.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self._path = folder / f"rank{rank}{SUFFIX}"
        self._answers: dict[str, Generation] = {}

    def open(self, identity: dict[str, Any]) -> None:
        """Read the answers of all processes and check that they belong to the run with this identity (JSON data).

        Raises:
            HybridError: the answers belong to another run, or a file is malformed.
        """
        head = {"schema_version": TOKENS_SCHEMA, "identity": json.loads(json.dumps(identity, default=str))}
        self._answers = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            lines = (value for _, value in jsonl.rows(path, torn=True))
            if next(lines, head) != head:
                raise HybridError(
                    f"{path} holds answers of a different run (another version, bundle, model pair or policy); only "
                    "the same run can be resumed; repeat the original command, or use another folder"
                )
            for line in lines:
                self._load(path, line)
        if self._path.exists():
            jsonl.cut_torn(self._path)
        if not self._path.exists() or not self._path.stat().st_size:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._append(head)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Generation | None:
        """The stored answer of a request, or None."""
        return self._answers.get(key)

    def add(self, key: str, generation: Generation) -> None:
        """Append an answer."""
        self._append({"key": key, **asdict(generation)})

    def remove(self) -> None:
        """Delete the files of all processes, once the run is complete."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink()

    def _load(self, path: Path, line: Any) -> None:
        try:
            records = tuple(TokenRecord(**record) for record in line["records"])
            self._answers[line["key"]] = Generation(line["text"], records, line["finish"])
        except (TypeError, KeyError) as error:
            raise HybridError(
                f"{path} holds a line that is not a stored answer; an interrupted run's own lines are needed; delete it"
            ) from error

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def guard_cache(cache: MutableMapping[str, Any], identity: dict[str, Any]) -> None:
    """Write `identity` (JSON data) into an empty response cache; check that a filled one has the same identity.

    The harness's cache (`--use_cache`) looks an answer up by its prompt alone, whatever model wrote it.

    Raises:
        HybridError: the cache was filled with another policy, bundle or pair of models, or by an unknown model.
    """
    advice = "give --use_cache another path, or delete the file"
    stored = cache.get(CACHE_KEY)
    if stored is None:
        if len(cache):
            raise HybridError(
                "the response cache holds answers of an unknown model; it must be empty or filled by the same bundle, "
                f"models and policy; {advice}"
            )
        cache[CACHE_KEY] = json.dumps(identity, sort_keys=True)
        return
    before, now = dict(_flat(json.loads(stored))), dict(_flat(json.loads(json.dumps(identity))))
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in differing)
        raise HybridError(
            f"the response cache was filled by a different run: {changes}; the same bundle, models and policy are "
            f"needed; {advice}"
        )


def _flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
