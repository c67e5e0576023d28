import json
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery.activations import read
from lm_eval_hybrid.discovery.traces import Trace, digest, prompt_ids, read_prompts, write
from lm_eval_hybrid.errors import HybridError
from tests.discovery.conftest import Studied, bos_tokenizer
from tests.tiny_system import tiny_tokenizer


def test_traces_are_the_thinking_models_own_greedy_text(studied: Studied) -> None:
    trace, thinking = studied.traces[3], studied.thinking
    ids = torch.tensor([thinking.tokenizer(trace.prompt).input_ids])
    greedy = thinking.model._module.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    assert trace.text == thinking.tokenizer.decode(greedy, skip_special_tokens=True)


def keep(path: Path, studied: Studied, count: int, tail: str = "") -> None:
    """A file of `count` traces that the thinking model is said to have written, then `tail`."""
    write(path, studied.thinking, [], max_new_tokens=40)
    kept = [{"prompt": trace.prompt, "text": "kept"} for trace in studied.traces[:count]]
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept) + tail)


@pytest.mark.parametrize("tail", ["", '{"prompt": "Ques'])
def test_an_interrupted_run_goes_on_where_it_was(studied: Studied, tmp_path: Path, tail: str) -> None:
    path, prompts = tmp_path / "traces.jsonl", [trace.prompt for trace in studied.traces]
    keep(path, studied, 10, tail)
    traces = write(path, studied.thinking, prompts, max_new_tokens=40)
    assert [trace.text for trace in traces[:10]] == ["kept"] * 10
    assert traces[10:] == studied.traces[10:]
    assert len(path.read_text().splitlines()) == 13
    assert write(path, studied.thinking, prompts, max_new_tokens=40) == traces


def test_traces_of_other_prompts_are_not_mixed_in(studied: Studied, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    keep(path, studied, 1)
    with pytest.raises(HybridError, match="same prompts; found others"):
        write(path, studied.thinking, ["a"], max_new_tokens=40)


def test_traces_of_another_model_or_length_are_not_mixed_in(studied: Studied, tmp_path: Path) -> None:
    path, prompts = tmp_path / "traces.jsonl", [trace.prompt for trace in studied.traces]
    keep(path, studied, 12)
    for model, length in ((studied.base, 40), (studied.thinking, 41)):
        with pytest.raises(HybridError, match="same model and max_new_tokens; found others"):
            write(path, model, prompts, max_new_tokens=length)


@pytest.mark.parametrize("row", ["[1]", '{"question": "a"}', '{"prompt": "a", "text": 1}'])
def test_foreign_files_are_refused_and_left_alone(studied: Studied, tmp_path: Path, row: str) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(row)
    with pytest.raises(HybridError, match="same model"):
        write(path, studied.thinking, ["a"], max_new_tokens=40)
    assert path.read_text() == row
    path.unlink()
    keep(path, studied, 1, row + "\n")
    with pytest.raises(HybridError, match=r"traces\.jsonl:3: must be a trace"):
        write(path, studied.thinking, ["a"], max_new_tokens=40)


def test_prompts_begin_as_the_tokenizer_begins_texts_but_not_twice() -> None:
    tokenizer = bos_tokenizer()
    plain = tiny_tokenizer()("Q").input_ids
    assert prompt_ids(tokenizer, "Q") == prompt_ids(tokenizer, "<pad>Q") == [0, *plain]
    assert prompt_ids(tiny_tokenizer(), "Q") == plain


def test_a_traces_prompt_is_read_with_its_bos(studied: Studied, tmp_path: Path) -> None:
    with_bos = LocalBackend(studied.thinking.model._module, bos_tokenizer())
    [trace] = write(tmp_path / "t.jsonl", with_bos, ["Question 3:"], max_new_tokens=20)
    ids = torch.tensor([with_bos.tokenizer("Question 3:").input_ids])
    seen = torch.ones_like(ids)  # else it would hide the first token, which is the padding's
    model = with_bos.model._module
    greedy = model.generate(ids, attention_mask=seen, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert trace.text == with_bos.tokenizer.decode(greedy, skip_special_tokens=True)
    [read_trace] = read(with_bos, with_bos, [trace], 0)
    assert read_trace.ids[: read_trace.begin].tolist() == ids[0].tolist()
    assert read_trace.ids[read_trace.begin] != 0  # none before what follows


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n')
    assert read_prompts(path) == ["a"]
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(HybridError, match=r"rows\.jsonl:2: must be an object with a non-empty string `prompt`"):
        read_prompts(path)
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    with pytest.raises(HybridError, match=r"rows\.jsonl:2: must be an object with a non-empty string `prompt`"):
        read_prompts(path)
    with pytest.raises(HybridError, match="must be a readable jsonl file"):
        read_prompts(tmp_path / "absent.jsonl")


def test_the_digest_tells_traces_apart() -> None:
    assert digest([Trace("a", "b")]) != digest([Trace("a", "c")])
    assert digest([Trace("a", "b")]) == digest([Trace("a", "b")])
