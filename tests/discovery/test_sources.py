import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.api_models import JsonChatStr

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.traces.sources import generate, read
from lm_eval_hybrid.discovery.traces.trace import Trace
from tests.discovery.conftest import Studied
from tests.shared_data import DATA

Writer = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Writer:
    """Writes values as the lines of a file."""

    def write_rows(*values: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return write_rows


def sample(prompt: Any = "Q:", text: Any = "So.", settings: Any = None, **more: Any) -> dict[str, Any]:
    """A sample of a document, as a samples file holds it."""
    request = {"arg_0": prompt, "arg_1": {"until": []} if settings is None else settings}
    return {"doc_id": 0, "arguments": {"gen_args_0": request}, "resps": [[text]], "target": "4", **more}


def saved(folder: Path, arguments: list[Any], responses: list[Any], filters: tuple[str, ...] = ("none",)) -> Path:
    """A samples file that the harness itself writes, of one document."""
    hashes = {"doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}
    samples = [
        {
            "doc_id": 0,
            "doc": {"question": "2 + 2?", "answer": "4"},
            "arguments": arguments,
            "resps": [list(repeats) for repeats in responses],
            "filtered_resps": [repeats[0] for repeats in responses],
            "filter": name,
            "target": "4",
            **hashes,
        }
        for name in filters
    ]
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("any", {"model": "any"}, None, None, False)
    tracker.save_results_aggregated({}, {"sums": samples})
    tracker.save_results_samples(task_name="sums", samples=samples)
    [path] = folder.rglob("samples_sums_*.jsonl")
    return path


def test_samples_under_several_filters_are_read_once(tmp_path: Path) -> None:
    path = saved(tmp_path, [("2 + 2?", {"until": []})], [["<think>\nSo 4"]], ("strict", "flexible"))
    assert len(path.read_text().splitlines()) == 2
    assert read([path, path]) == [Trace("2 + 2?", "<think>\nSo 4")]


def test_repeats_are_separate_traces(tmp_path: Path) -> None:
    path = saved(tmp_path, [("2 + 2?", {}), ("3 + 3?", {})], [["four", "4", "4"], ["six"]])
    assert read([path]) == [Trace("2 + 2?", "four"), Trace("2 + 2?", "4"), Trace("3 + 3?", "six")]


MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2?"}]


def test_a_chat_becomes_the_text_of_its_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chats = [JsonChatStr(json.dumps(MESSAGES[1:])), MESSAGES[1:], JsonChatStr(json.dumps(MESSAGES)), MESSAGES]
    path = saved(tmp_path, [(chat, {}) for chat in chats], [["a"], ["b"], ["c"], ["d"]])
    with caplog.at_level(logging.WARNING):
        traces = read([path])
    assert [trace.prompt for trace in traces] == ["2 + 2?"] * 2 + ["Think.\n\n2 + 2?"] * 2
    ours = [record for record in caplog.records if record.name.startswith("lm_eval_hybrid")]
    assert [record.message for record in ours] == ["2 prompts are chats of several messages, read as one text each"]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Q", "response": "R"}, "Q"),
        ({"problem": "Q", "response": "R", "answer": "gold", "solution": "gold"}, "Q"),
        ({"prompt": "<user>Q", "question": "Q", "text": "R"}, "<user>Q"),
        ({"question": "Q", "response": "R", "text": "all of it"}, "Q"),
        ({"prompt": [{"role": "user", "content": "Q"}], "response": "R"}, "Q"),
    ],
)
def test_plain_lines_have_a_question_and_a_response(rows: Writer, row: dict[str, Any], prompt: str) -> None:
    assert read([rows(row)]) == [Trace(prompt, "R")]


def test_generated_files_are_recognised_by_their_first_line(studied: Studied, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    prompts = [trace.prompt for trace in studied.traces]
    assert read([kept(path, studied, prompts)]) == studied.traces
    with path.open("a") as file:
        file.write('{"prompt": "torn')
    assert read([path]) == studied.traces


def kept(path: Path, studied: Studied, prompts: list[str]) -> Path:
    """A file as `generate` leaves it, made of existing traces."""
    generate(path, studied.pair, [], max_new_tokens=40)
    with path.open("a") as file:
        file.writelines(json.dumps({"prompt": t.prompt, "text": t.text}) + "\n" for t in studied.traces)
    assert generate(path, studied.pair, prompts, max_new_tokens=40) == studied.traces
    return path


def test_files_of_all_formats_are_read_in_order(rows: Writer, studied: Studied, tmp_path: Path) -> None:
    plain = rows({"question": "A", "response": "1"}, sample("B", "2"), name="plain.jsonl")
    ours = kept(tmp_path / "traces.jsonl", studied, [trace.prompt for trace in studied.traces])
    assert read([plain, ours]) == [Trace("A", "1"), Trace("B", "2"), *studied.traces]


def test_empty_responses_are_left_out_and_counted(rows: Writer, caplog: pytest.LogCaptureFixture) -> None:
    path = rows(sample("A", ""), sample("B", " \n"), sample("C", "So."))
    with caplog.at_level(logging.WARNING):
        assert read([path]) == [Trace("C", "So.")]
    assert [record.message for record in caplog.records] == ["2 responses are empty and left out"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            3,
            "found 3, not an object; give a sample, or one of prompt, question, .* and one of response, text",
        ),
        ({}, "found \\[\\]; a trace must have one of .*; rename its keys"),
        (
            {"prompt": "Q", "answer": "4"},
            "found \\['prompt', 'answer'\\] .*usually the reference answer.; a trace must",
        ),
        ({"instruction": "Q", "response": "R"}, "found \\['instruction', 'response'\\]; .*; rename its keys"),
        ({"question": "Q", "response": None}, "`response` is None, not text"),
        ({"question": "", "response": "R"}, "the prompt is ''; it must be text or a chat's messages, not empty"),
        ({"question": 4, "response": "R"}, "the prompt is 4; it must be text"),
        ({"question": "Q\ud800", "response": "R"}, "contains '.ud800', half of a surrogate pair"),
        ({"question": "Q", "response": "\udfff"}, "contains '.udfff', half of a surrogate pair"),
        (sample(["Q"]), "the prompt is \\['Q'\\]; it must be text"),
        (sample(["[[1]]"]), "the prompt is .*; it must be text or a chat's messages"),
        (
            sample([{"role": "user", "content": [{"type": "image"}]}]),
            "the prompt is .*; it must be text or a chat's messages",
        ),
        (
            sample(settings=" yes", text=["-1.5", "False"]),
            "found \\['-1.5', 'False'\\] as the response of a sample, not text",
        ),
        (sample(settings=" yes", text="-1.5"), "found '-1.5' as the response of a sample, not text; give samples_"),
        ({"resps": [["R"]]}, "it must have arguments.gen_args_0"),
        (sample(resps=[["R"], ["S"]]), "it must have arguments.gen_args_0"),
        (sample(arguments={"gen_args_0": {"arg_0": "Q"}}), "it must have arguments.gen_args_0"),
        (sample(resps=None), "it must have arguments.gen_args_0"),
    ],
)
def test_a_line_that_is_no_trace_is_reported(rows: Writer, bad: Any, said: str) -> None:
    with pytest.raises(HybridError, match=rf"^\S+rows\.jsonl:2: .*{said}") as caught:
        read([rows(sample(), bad)])
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_reported(rows: Writer, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"absent\.jsonl: cannot be read"):
        read([tmp_path / "absent.jsonl"])
    table = tmp_path / "table.csv"
    table.write_text("question,response\n")
    with pytest.raises(HybridError, match=r"table\.csv:1: not JSON"):
        read([table])


def test_files_without_traces_are_refused(rows: Writer) -> None:
    for paths in ([], [rows()], [rows(sample(text=""))]):
        with pytest.raises(HybridError, match="found no response that is not empty in "):
            read(paths)


def test_real_traces_are_read() -> None:
    files = sorted((DATA / "traces").glob("*.jsonl"))
    if not files:
        pytest.skip("needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
    traces = read(files)
    assert len(traces) == sum(len(file.read_bytes().splitlines()) for file in files)
    assert all(trace.text.startswith("<think>") for trace in traces)
