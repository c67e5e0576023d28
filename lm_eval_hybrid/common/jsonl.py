"""Files of one JSON value a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.errors import HybridError


def rows(path: Path, torn: bool = False) -> Iterator[tuple[int, Any]]:
    r"""The values of a UTF-8 file, each with its line's number (from 1). Only "\n" ends a line.

    Args:
        torn: leave out a last line without its end, which is what an interrupted writer leaves.

    Raises:
        HybridError: for a file that cannot be read, or, as `path:line`, a line that is not JSON.
    """
    try:
        # As bytes: so that the line that is not UTF-8 can be named.
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if torn and not line.endswith(b"\n"):
                    return
                yield number, _value(line, f"{path}:{number}")
    except OSError as error:
        raise HybridError(f"{path}: must be a readable jsonl file; found {error.strerror}; name another") from None


def cut_torn(path: Path) -> None:
    """Cut off a last line without its end, before more is appended."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _value(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{where}: must be a line of JSON; found {error}; mend or delete it") from None
