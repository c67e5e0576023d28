"""The lines of samples files and tokens files, parsed one at a time."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA

Parsed = TypeVar("Parsed")


def parsed(path: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Iterator[Parsed]:
    """What `parse` makes of each line, as a JSON object.

    Raises:
        HybridError: with the line's number, for a line that is none, or of which `parse` makes nothing.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse(json.loads(line))
            except HybridError as error:
                raise HybridError(f"{path}, line {number}: {error}") from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise HybridError(
                    f"{path} must hold one JSON object a line, as the run writes them; line {number} is none "
                    f"({type(error).__name__}: {error}); run the arm again"
                ) from error


def tokens(path: Path, parse: Callable[[dict[str, Any]], Parsed]) -> Iterator[Parsed]:
    """The same of a tokens file, whose lines say their schema's version."""

    def parse_checked(line: dict[str, Any]) -> Parsed:
        if line.get("schema_version") != TOKENS_SCHEMA:
            raise HybridError(
                f"token records must have schema version {TOKENS_SCHEMA}; found {line.get('schema_version')}; "
                "read them with the version of lm-eval-hybrid that wrote them"
            )
        return parse(line)

    return parsed(path, parse_checked)
