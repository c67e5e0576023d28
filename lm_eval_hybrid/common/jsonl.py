"""Reads files of one JSON value a line, and finds the question in a data set's row."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.errors import HybridError

QUESTION_FIELDS = ("question", "problem", "query", "input", "prompt")
"""Names that data sets give the question, in upper or lower case; the first that a row has counts."""


def question_of(row: Mapping[str, Any]) -> str | None:
    """The text in the first of QUESTION_FIELDS that `row` has as text; None if it has none."""
    fields = {name.lower(): value for name, value in row.items() if isinstance(value, str)}
    return next((fields[name] for name in QUESTION_FIELDS if name in fields), None)


def rows(path: Path, *, torn: bool = False, lenient: bool = False) -> Iterator[tuple[int, Any]]:
    r"""Yield each value of a UTF-8 file with its line number, from 1. Only "\n" ends a line.

    Args:
        torn: skip a last line without a newline, which an interrupted writer leaves.
        lenient: skip blank lines and a byte order mark, and replace bytes that are not UTF-8.

    Raises:
        HybridError: the file cannot be read, or (as `path:line`) a line is not JSON.
    """
    try:
        # Read as bytes, so that an error can name the line that is not UTF-8.
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if torn and not line.endswith(b"\n"):
                    return
                if lenient and not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8-sig", "replace") if lenient else line.decode())
                except (ValueError, RecursionError) as error:
                    raise HybridError(f"{path}:{number}: not JSON: {error}; fix or delete the line") from None
    except OSError as error:
        raise HybridError(f"{path}: cannot be read ({error.strerror}); name a readable jsonl file") from None


def cut_torn(path: Path) -> None:
    """Truncate a last line without a newline, before more is appended."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
