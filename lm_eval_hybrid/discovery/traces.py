"""Reasoning traces: what a thinking model wrote after each of its prompts, and files of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.decoding.batch import Prompt
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.errors import HybridError

BATCH = 50


@dataclass(frozen=True)
class Trace:
    """A prompt, as the model read it, and what it wrote."""

    prompt: str
    text: str


def digest(traces: Iterable[Trace]) -> str:
    """sha256 of the traces, in hex: what a bundle records as its data."""
    content = hashlib.sha256()
    for trace in traces:
        content.update(json.dumps(asdict(trace), sort_keys=True).encode())
    return content.hexdigest()


def read_prompts(path: Path) -> list[str]:
    """The prompts of a jsonl file, one object with `prompt` a line.

    Raises:
        HybridError: for a line that is not such an object.
    """
    prompts = []
    for number, row in _rows(path):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise HybridError(f"{path}:{number}: must be an object with a string `prompt`; found {row!r:.60}; mend it")
        prompts.append(row["prompt"])
    return prompts


def read_samples(paths: Sequence[Path]) -> list[Trace]:
    """The traces in the harness's samples files (`--log_samples`) of a thinking model's run.

    Raises:
        HybridError: for a file without prompts and responses.
    """
    traces = []
    for path in paths:
        for number, row in _rows(path):
            try:
                traces.append(Trace(row["arguments"]["gen_args_0"]["arg_0"], row["resps"][0][0]))
            except (KeyError, IndexError, TypeError):
                raise HybridError(
                    f"{path}:{number}: a sample must hold arguments.gen_args_0.arg_0 and resps[0][0]; found neither or "
                    "one; give samples_*.jsonl of a generate_until task, written with --log_samples"
                ) from None
    return traces


def write(path: Path, backend: LocalBackend, prompts: Sequence[str], max_new_tokens: int) -> list[Trace]:
    """The traces of `prompts`, decoded greedily by the thinking model, kept in `path` (jsonl) as they come.

    What `path` holds already is not decoded again, so an interrupted run goes on.

    Raises:
        HybridError: where `path` holds traces of other prompts.
    """
    traces = [Trace(**row) for _, row in _rows(path)] if path.exists() else []
    if [trace.prompt for trace in traces] != list(prompts[: len(traces)]):
        raise HybridError(f"{path}: must hold traces of the same prompts; found others; delete it or name another file")
    # Nothing is steered: the thinking model stands in the base's place.
    decoder = HybridDecoder(backend, None, None, Policy(gate="never", coefficients=(1.0,), windows=(1,)))
    with path.open("a") as file, tqdm(total=len(prompts), initial=len(traces), desc="traces") as bar:
        for first in range(len(traces), len(prompts), BATCH):
            some = prompts[first : first + BATCH]
            ids = [backend.tokenizer(prompt, add_special_tokens=False).input_ids for prompt in some]
            answers = decoder.generate([Prompt(i, i) for i in ids], max_new_tokens)
            new = [Trace(prompt, answer.text) for prompt, answer in zip(some, answers, strict=True)]
            file.writelines(json.dumps(asdict(trace)) + "\n" for trace in new)
            file.flush()
            traces += new
            bar.update(len(new))
    return traces


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise HybridError(f"{path}: must be a readable jsonl file; found {error.strerror}; name another") from None
    for number, line in enumerate(lines, 1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise HybridError(f"{path}:{number}: must be a line of JSON; found {error}; mend or delete it") from None
