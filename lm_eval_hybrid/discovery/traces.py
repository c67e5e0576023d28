"""Reasoning traces: what a thinking model wrote after each of its prompts, and files of them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid import jsonl
from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.errors import HybridError

BATCH = 50
_OTHERWISE = "delete it or name another --work folder"
SEEN = 256  # values of each weight that tell models apart


@dataclass(frozen=True)
class Trace:
    """A prompt, read as it stands (no chat template is put around it), and what the model wrote."""

    prompt: str
    text: str


def digest(traces: Iterable[Trace]) -> str:
    """sha256 of the traces, in hex: what a bundle records as its data."""
    content = hashlib.sha256()
    for trace in traces:
        content.update(json.dumps(asdict(trace), sort_keys=True).encode())
    return content.hexdigest()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt as decoding reads it: with the tokenizer's special tokens, but no second BOS."""
    begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return tokenizer(prompt, add_special_tokens=not begun).input_ids


def read_prompts(path: Path) -> list[str]:
    """The prompts of a jsonl file, one object with `prompt` a line; each prompt once.

    Raises:
        HybridError: for a line that is not such an object.
    """
    prompts = []
    for number, row in jsonl.rows(path):
        if not isinstance(row, dict) or not _filled(row.get("prompt")):
            raise HybridError(
                f"{path}:{number}: must be an object with a non-empty string `prompt`; found {row!r:.60}; mend it"
            )
        prompts.append(row["prompt"])
    return list(dict.fromkeys(prompts))


def write(path: Path, backend: LocalBackend, prompts: Sequence[str], max_new_tokens: int) -> list[Trace]:
    """The traces of `prompts`, decoded greedily by the thinking model, kept in `path` (jsonl) as they come.

    What `path` holds already is not decoded again, so an interrupted run goes on. Its first line says what made it.

    Raises:
        HybridError: where `path` holds something else than traces of this model and these prompts.
    """
    made_by = {"max_new_tokens": max_new_tokens, "weights": fingerprint(backend)}
    if not path.exists() or not path.stat().st_size:
        path.write_text(json.dumps(made_by) + "\n")
    traces = _kept(path, made_by)
    if [trace.prompt for trace in traces] != list(prompts[: len(traces)]):
        raise HybridError(f"{path}: must hold traces of the same prompts; found others; {_OTHERWISE}")
    _cut_torn_line(path)
    # Nothing is steered: the thinking model stands in the base's place.
    decoder = HybridDecoder(backend, None, None, Policy(gate="never", coefficients=(1.0,), windows=(1,)))
    with path.open("a") as file, tqdm(total=len(prompts), initial=len(traces), desc="traces") as bar:
        for first in range(len(traces), len(prompts), BATCH):
            some = prompts[first : first + BATCH]
            ids = [prompt_ids(backend.tokenizer, prompt) for prompt in some]
            answers = decoder.generate([Prompt(i, i) for i in ids], max_new_tokens)
            new = [Trace(prompt, answer.text) for prompt, answer in zip(some, answers, strict=True)]
            file.writelines(json.dumps(asdict(trace)) + "\n" for trace in new)
            file.flush()
            traces += new
            bar.update(len(new))
    return traces


def _kept(path: Path, made_by: dict[str, Any]) -> list[Trace]:
    """The traces that `path` holds whole, below the line that says what made them."""
    found = jsonl.rows(path, torn=True)
    if next(found, (1, None))[1] != made_by:
        raise HybridError(f"{path}: must hold traces of the same model and max_new_tokens; found others; {_OTHERWISE}")
    traces = []
    for number, row in found:
        if not (
            isinstance(row, dict) and row.keys() == {"prompt", "text"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: must be a trace; found {row!r:.60}; {_OTHERWISE}")
        traces.append(Trace(**row))
    return traces


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def fingerprint(backend: LocalBackend) -> str:
    """sha256 (hex) of the names, shapes and first values of a model's weights: cheap, and training changes it."""
    content = hashlib.sha256()
    for name, weight in backend.model._module.named_parameters():
        first = weight.detach().reshape(-1)[:SEEN].to("cpu", torch.float32)
        content.update(f"{name} {tuple(weight.shape)}".encode() + first.numpy().tobytes())
    return content.hexdigest()


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
