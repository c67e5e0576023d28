import json
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.discovery.traces import Trace, digest, read_prompts, read_samples, write
from lm_eval_hybrid.errors import HybridError
from tests.discovery.conftest import Studied


def test_traces_are_the_thinking_models_own_greedy_text(studied: Studied) -> None:
    trace, thinking = studied.traces[3], studied.thinking
    ids = torch.tensor([thinking.tokenizer(trace.prompt).input_ids])
    greedy = thinking.model._module.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    assert trace.text == thinking.tokenizer.decode(greedy, skip_special_tokens=True)


def test_an_interrupted_run_goes_on_where_it_was(studied: Studied, tmp_path: Path) -> None:
    path, prompts = tmp_path / "traces.jsonl", [trace.prompt for trace in studied.traces]
    kept = [{"prompt": prompt, "text": "kept"} for prompt in prompts[:10]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    traces = write(path, studied.thinking, prompts, max_new_tokens=40)
    assert [trace.text for trace in traces[:10]] == ["kept"] * 10
    assert traces[10:] == studied.traces[10:]
    assert len(path.read_text().splitlines()) == 12


def test_traces_of_other_prompts_are_not_mixed_in(studied: Studied, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text('{"prompt": "another", "text": "x"}\n')
    with pytest.raises(HybridError, match="same prompts; found others"):
        write(path, studied.thinking, ["a"], max_new_tokens=4)


def test_samples_of_the_harness_are_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"arguments": {"gen_args_0": {"arg_0": "Q:", "arg_1": {}}}, "resps": [["So."]]}) + "\n")
    assert read_samples([path]) == [Trace("Q:", "So.")]


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    with pytest.raises(HybridError, match=r"rows\.jsonl:2: must be an object with a string `prompt`"):
        read_prompts(path)
    with pytest.raises(HybridError, match=r"rows\.jsonl:1: a sample must hold"):
        read_samples([path])
    with pytest.raises(HybridError, match="must be a readable jsonl file"):
        read_prompts(tmp_path / "absent.jsonl")


def test_the_digest_tells_traces_apart() -> None:
    assert digest([Trace("a", "b")]) != digest([Trace("a", "c")])
    assert digest([Trace("a", "b")]) == digest([Trace("a", "b")])
