"""Reasoning traces: what a thinking model wrote after each of its prompts."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Trace:
    """A prompt, as the base would read it, and what the thinking model wrote after its own form of it."""

    prompt: str
    text: str


def digest(traces: Iterable[Trace]) -> str:
    """sha256 of the traces, in hex: what a bundle records as its data."""
    content = hashlib.sha256()
    for trace in traces:
        content.update(json.dumps(asdict(trace), sort_keys=True).encode())
    return content.hexdigest()
