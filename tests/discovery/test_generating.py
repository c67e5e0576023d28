import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.traces import sources
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.sources import generate
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import RAW, Studied, bos_tokenizer
from tests.tiny_system import CHAT_TEMPLATE, tiny_model, tiny_tokenizer


def greedy(pair: ModelPair, prompt: str, tokens: int) -> str:
    """The greedy answer of transformers' own decoding."""
    tokenizer = pair.thinking.tokenizer
    ids = torch.tensor([pair.prompts(prompt).thinking_ids])
    seen = torch.ones_like(ids)  # else it would hide the tokens that are the padding's
    model = pair.thinking.model._module
    found = model.generate(ids, attention_mask=seen, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(found, skip_special_tokens=True)


def keep(path: Path, studied: Studied, count: int, tail: str = "") -> None:
    """A file of `count` traces attributed to the thinking model, then `tail`."""
    generate(path, studied.pair, [], max_new_tokens=40)
    with path.open("a") as file:
        kept = [replace(trace, text="kept") for trace in studied.traces[:count]]
        file.write("".join(json.dumps(asdict(trace)) + "\n" for trace in kept) + tail)


def prompts_of(studied: Studied) -> list[str]:
    return [trace.prompt for trace in studied.traces]


def test_traces_equal_greedy_decoding_by_transformers(studied: Studied) -> None:
    some = studied.traces[::4]
    assert [trace.text for trace in some] == [greedy(studied.pair, trace.prompt, 40) for trace in some]
    other = replace(studied.pair, thinking=studied.base)
    assert some[0].text != greedy(other, some[0].prompt, 40)


@pytest.mark.parametrize("prompt", [RAW, PromptSpec(thinking="chat", prefix="<think>\n")])
def test_the_prompt_has_the_pairs_form_and_a_bos(studied: Studied, tmp_path: Path, prompt: PromptSpec) -> None:
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    thinking = LocalBackend(studied.thinking.model._module, tokenizer)
    pair = ModelPair(studied.base, thinking, prompt)
    [trace] = generate(tmp_path / "t.jsonl", pair, ["Question 3:"], max_new_tokens=20)
    assert pair.prompts("Question 3:").thinking_ids[0] == 0
    assert (trace.prompt, trace.text) == ("Question 3:", greedy(pair, "Question 3:", 20))


@pytest.mark.parametrize("tail", ["", '{"prompt": "Ques', '{"prompt": "\\ud83d'])
def test_an_interrupted_run_continues(studied: Studied, tmp_path: Path, tail: str) -> None:
    path, prompts = tmp_path / "traces.jsonl", prompts_of(studied)
    keep(path, studied, 10, tail)
    traces = generate(path, studied.pair, prompts, max_new_tokens=40)
    assert [trace.text for trace in traces[:10]] == ["kept"] * 10
    assert traces[10:] == studied.traces[10:]
    assert len(path.read_text().splitlines()) == 13
    assert generate(path, studied.pair, prompts, max_new_tokens=40) == traces
    assert sources.read([path]) == traces


def test_written_traces_survive_an_interruption(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH", 5)
    path, prompts = tmp_path / "traces.jsonl", prompts_of(studied)
    for bad, said in (("x" * 20000, "has 20000 tokens"), ("x" * 16384, "has 16384 tokens")):
        # Before anything is decoded: not hours later.
        with pytest.raises(HybridError, match=f"{said}.* leaves no room in the .* context of 16384 tokens"):
            generate(path, studied.pair, [*prompts, bad], max_new_tokens=40)
        assert len(path.read_text().splitlines()) == 1
    generate(path, studied.pair, prompts[:7], max_new_tokens=40)
    assert generate(path, studied.pair, prompts, max_new_tokens=40) == studied.traces


def test_an_answer_ends_at_the_context_length(tmp_path: Path) -> None:
    small = LocalBackend(tiny_model(0, context=20), tiny_tokenizer())
    pair = ModelPair(small, small, RAW)
    prompts = ["Question 1: a", "Question 22: why is t"[:19]]
    found = generate(tmp_path / "t.jsonl", pair, prompts, max_new_tokens=40)
    assert [trace.text for trace in found] == [greedy(pair, p, 20 - len(p)) for p in prompts]


def test_traces_of_other_prompts_are_not_mixed_in(studied: Studied, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    keep(path, studied, 2)
    for prompts in (["a", "b", "c"], prompts_of(studied)[:1], prompts_of(studied)[1:]):
        with pytest.raises(HybridError, match="contains traces of other prompts"):
            generate(path, studied.pair, prompts, max_new_tokens=40)


def test_traces_of_another_model_prompt_or_length_are_not_mixed_in(studied: Studied, tmp_path: Path) -> None:
    path, prompts = tmp_path / "traces.jsonl", prompts_of(studied)
    keep(path, studied, 12)
    kept = path.read_bytes()
    for pair, length in (
        (replace(studied.pair, thinking=studied.base), 40),
        (replace(studied.pair, prompt=PromptSpec(thinking="raw", prefix="<think>")), 40),
        (studied.pair, 41),
    ):
        with pytest.raises(HybridError, match="was not written with the same model, prompt and max_new_tokens"):
            generate(path, pair, prompts, max_new_tokens=length)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("row", ["[1]", '{"question": "a"}', '{"prompt": "a", "text": 1}', "null", '"text"'])
def test_foreign_files_are_refused_and_left_alone(studied: Studied, tmp_path: Path, row: str) -> None:
    path = tmp_path / "traces.jsonl"
    for content in (row, row + "\n"):
        path.write_text(content)
        with pytest.raises(HybridError, match="same model"):
            generate(path, studied.pair, ["a"], max_new_tokens=40)
        assert path.read_text() == content
    path.unlink()
    keep(path, studied, 1, row + "\n")
    with pytest.raises(HybridError, match=r"traces\.jsonl:3: found .* no trace"):
        generate(path, studied.pair, prompts_of(studied), max_new_tokens=40)


def test_an_empty_file_is_started(studied: Studied, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.touch()
    assert generate(path, studied.pair, prompts_of(studied)[:2], max_new_tokens=40) == studied.traces[:2]
