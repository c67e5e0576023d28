"""Recordings scored anew: what is read of files, and what the command shows and writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.commands import main as cli
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results import recordings
from lm_eval_hybrid.results.recordings import scores

ENDED, OPEN = "2 * 9 is 18.</think>It is \\boxed{18}.", "2 * 9 is \\boxed{18}, but wait"


def task(base: str | None, hybrid: str | None, thinking: str | None, truth: str = "so 18\n#### 18") -> dict[str, Any]:
    answers = {"base_model": base, "thinking_model": thinking, "hybrid_model": hybrid}
    return {"question": "How many nuts are left?", "correct_answer": truth, "model_answers": answers}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def recording(folder: Path, **more: Any) -> Path:
    tasks = [
        task("17 nuts are left.", "So 18 nuts are left.", ENDED),
        task("", "The answer is 18.", ENDED),
        task("It is \\boxed{18}.", "It is \\boxed{17}.", ENDED),
        task(None, "It is \\boxed{18}.", OPEN, truth="18"),
    ]
    return written(folder / "results.json", {"metadata": {}, "tasks": tasks, **more})


def sample(doc_id: int, response: Any, filter: str = "none", **more: Any) -> str:
    doc = {"question": "How many nuts are left?", "answer": "so 18\n#### 18"}
    return json.dumps(
        {"doc_id": doc_id, "doc": doc, "target": doc["answer"], "resps": response, "filter": filter, **more}
    )


def test_each_answer_is_scored_alike(tmp_path: Path) -> None:
    found = {(score.task, score.model): score for score in scores(recordings.read(recording(tmp_path)))}
    right = {key for key, score in found.items() if score.right}
    assert right == {
        *((place, "thinking_model") for place in range(3)),
        *((place, "hybrid_model") for place in (0, 1, 3)),
        (2, "base_model"),
    }
    assert found[0, "base_model"].answer == "17"
    assert found[1, "base_model"].answer is None
    assert (3, "base_model") not in found


def test_a_thought_that_the_prompt_opened_is_unfinished_without_its_end(tmp_path: Path) -> None:
    read = recordings.read(recording(tmp_path))
    assert read.thoughts_prompted("thinking_model")
    assert not read.thoughts_prompted("base_model")
    cut = [score for score in scores(read) if score.task == 3 and score.model == "thinking_model"]
    assert [(score.right, score.answer, score.unfinished) for score in cut] == [(False, None, True)]


def test_a_model_that_opens_its_thoughts_itself_may_answer_without(tmp_path: Path) -> None:
    tasks = [task(None, None, f"<think>{ENDED}"), task(None, None, "It is 18."), task(None, None, "<think> It is 18.")]
    found = list(scores(recordings.read(written(tmp_path / "own.json", {"tasks": tasks}))))
    assert [(score.right, score.unfinished) for score in found] == [(True, False), (True, False), (False, True)]


def test_samples_of_the_harness_are_read_for_any_model(tmp_path: Path) -> None:
    folder = tmp_path / "org__model"
    folder.mkdir()
    path = folder / "samples_gsm8k_2025-01-01T00-00-00.jsonl"
    lines = [
        sample(0, [["So 18 nuts are left."]], exact_match=1.0),
        sample(0, [["So 18 nuts are left."]], "again", exact_match=0.0),
        sample(1, [["So 17 nuts are left."]], exact_match=0.0),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = recordings.read(path)
    assert read.models == ("org__model",)
    assert [score.right for score in scores(read)] == [True, False]
    assert read.judged == {"org__model": 0.5}


def test_a_sample_without_target_has_its_truth_in_the_document(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"doc": {"problem": "?", "solution": r"\boxed{18}"}, "resps": [["It is 18."]]}))
    assert [score.right for score in scores(recordings.read(path))] == [True]


def test_a_null_response_is_an_unanswered_document(tmp_path: Path) -> None:
    """An API model gives null where it refuses or fails; the other documents still count."""
    path = tmp_path / "api.jsonl"
    path.write_text("\n".join([sample(0, [["It is 18."]]), sample(1, [[None]])]))
    assert [(score.right, score.answer) for score in scores(recordings.read(path))] == [(True, "18"), (False, None)]


def test_the_command_shows_a_table_and_the_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recording(tmp_path, results={"accuracy": {"base_model": 50.0, "hybrid_model": 75.0}})
    assert cli.main(["rescore", str(path)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["base_model"][1:] == ["3", "33.3%", "[6.1,", "79.2]", "50.0%", "-16.7", "0", "1"]
    assert rows["hybrid_model"][1:] == ["4", "75.0%", "[30.1,", "95.4]", "75.0%", "+0.0", "0", "0"]
    assert rows["thinking_model"][-4:] == ["-", "-", "1", "0"]
    # Of the three tasks that all answered: base 1, hybrid 2, thinking 3.
    assert rows["gap"][:3] == ["gap", "recovered:", "+50.0%"]


def test_the_command_writes_a_line_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = recording(tmp_path), tmp_path / "scores.jsonl"
    cli.main(["rescore", str(path), str(path), "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * 11
    first = {"file": str(path), "task": 0, "model": "base_model", "right": False, "answer": "17", "unfinished": False}
    assert lines[0] == first
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == ["scores.jsonl"]


def test_without_a_thinking_model_no_gap_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "mine.json", {"tasks": [{"correct_answer": 18, "model_answers": {"mine": "It is 18."}}]})
    cli.main(["rescore", str(path)])
    shown = capsys.readouterr().out
    assert "100.0%" in shown and "gap" not in shown


def test_where_thinking_is_not_above_base_the_gap_is_undefined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.json", {"tasks": [task("It is 18.", "It is 17.", OPEN)]})
    cli.main(["rescore", str(path)])
    assert "gap recovered: undefined: thinking is not above base" in capsys.readouterr().out


def test_bytes_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    content = json.dumps({"tasks": [task("It is 18 nuts @", None, None)]}).encode()
    path.write_bytes(content.replace(b"@", b"\xff\xfe"))
    assert [score.right for score in scores(recordings.read(path))] == [True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json: not JSON"),
        ("a.json", "[1]", "holds a list; a recording must be a JSON object with a list of tasks"),
        ("a.json", '{"results": {}}', "holds an object of results"),
        ("a.json", '{"tasks": []}', "holds an empty list of tasks"),
        ("a.json", '{"tasks": [5]}', "task 0: found int; must have a correct_answer"),
        ("a.json", '{"tasks": [{"correct_answer": "5"}]}', "task 0: found correct_answer; must have"),
        (
            "a.json",
            '{"tasks": [{"correct_answer": "5", "model_answers": {"m": null}}]}',
            "has no answers of a model",
        ),
        ("a.jsonl", "", "has no answers of a model"),
        ("a.jsonl", "nothing", "a.jsonl:1: not JSON"),
        ("a.jsonl", '{"text": "5"}', "a.jsonl:1: has no doc"),
        (
            "a.jsonl",
            '{"doc": {"answer": "5"}, "resps": [[[-1.5, false]]]}',
            "a.jsonl:1: holds log-likelihoods",
        ),
        ("a.jsonl", '{"doc": {"question": "5"}, "resps": [["5"]]}', "must have its true answer in answer or"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(HybridError, match=message):
        recordings.read(path)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rescore", str(tmp_path / "none.json")]) == 2
    assert "cannot be read (No such file" in capsys.readouterr().err
