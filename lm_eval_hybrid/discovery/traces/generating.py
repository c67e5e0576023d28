"""Traces decoded on the spot, kept in a file as they come."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.discovery.traces.pair import Pair, fingerprint
from lm_eval_hybrid.discovery.traces.traces import Trace

BATCH = 50  # traces that are decoded together, and written together
_OTHERWISE = "delete it or name another --work folder"


def generate(path: Path, pair: Pair, prompts: Sequence[str], max_new_tokens: int) -> list[Trace]:
    """The traces of `prompts`, decoded greedily by the thinking model, kept in `path` (jsonl) as they come.

    What `path` holds already is not decoded again, so an interrupted run goes on. Its first line says what made it.

    Raises:
        HybridError: where `path` holds something else than traces of this model and these prompts, or a prompt leaves
            no room for an answer, before any is decoded.
    """
    settings = {"max_new_tokens": max_new_tokens, "prompt": pair.prompt.model_dump()}
    made_by = {**settings, "weights": fingerprint(pair.thinking)}
    if not path.exists() or not path.stat().st_size:
        write_file(path, f"{json.dumps(made_by)}\n".encode())
    traces = _kept(path, made_by)
    if [trace.prompt for trace in traces] != list(prompts[: len(traces)]):
        raise HybridError(f"{path}: must hold traces of the same prompts; found others; {_OTHERWISE}")
    ids = [pair.prompts(prompt).thinking_ids for prompt in prompts]
    room = [min(max_new_tokens, pair.thinking.context_length - len(i)) for i in ids]
    for prompt, read, left in zip(prompts, ids, room, strict=True):
        if left < 1:
            raise HybridError(
                f"a prompt must leave room in the thinking model's context of {pair.thinking.context_length} tokens; "
                f"found {len(read)} in {prompt!r:.60}; leave it out"
            )
    jsonl.cut_torn(path)
    # Nothing is steered: the thinking model stands in the base's place.
    decoder = HybridDecoder(pair.thinking, None, None, Policy(gate="never", coefficients=(1.0,), windows=(1,)))
    with path.open("a") as file, tqdm(total=len(prompts), initial=len(traces), desc="traces") as bar:
        for first in range(len(traces), len(prompts), BATCH):
            some = slice(first, first + BATCH)
            answers = decoder.generate([Prompt(i, i) for i in ids[some]], room[some])
            new = [Trace(prompt, answer.text) for prompt, answer in zip(prompts[some], answers, strict=True)]
            file.writelines(json.dumps(asdict(trace)) + "\n" for trace in new)
            file.flush()
            traces += new
            bar.update(len(new))
    return traces


def _kept(path: Path, made_by: dict[str, Any]) -> list[Trace]:
    """The traces that `path` holds whole, below the line that says what made them."""
    found = jsonl.rows(path, torn=True)
    if next(found, (1, None))[1] != made_by:
        raise HybridError(
            f"{path}: must hold traces of the same model, prompt and max_new_tokens; found others; {_OTHERWISE}"
        )
    traces = []
    for number, row in found:
        if not (
            isinstance(row, dict) and row.keys() == {"prompt", "text"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: must be a trace; found {row!r:.60}; {_OTHERWISE}")
        traces.append(Trace(**row))
    return traces
