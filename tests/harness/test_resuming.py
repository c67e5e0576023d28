"""Answers that an interrupted run has left."""

import json
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import Generation, TokenRecord
from lm_eval_hybrid.harness.resuming import AnswersFile, request_key

RECORD = TokenRecord(0, 5, "4\u2028", True, False, 1, "compute", 1.0, 0, -0.1 / 3, 5, -1e-17, 7, -0.2)
ANSWER = Generation("4\u2028", (RECORD,), "eos")
IDENTITY = {"arm": "hybrid", "policy": {"windows": (1, 2)}}


def opened(folder: Path, rank: int = 0) -> AnswersFile:
    file = AnswersFile(folder, rank)
    file.open(IDENTITY)
    return file


def test_answers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    opened(tmp_path).add("one", ANSWER)
    again = opened(tmp_path)
    assert "one" in again and "two" not in again
    assert again.get("one") == ANSWER
    assert again.get("two") is None


def test_every_process_reads_what_all_have_written(tmp_path: Path) -> None:
    for rank in (0, 1):
        opened(tmp_path, rank).add(f"of {rank}", ANSWER)
    assert all(f"of {rank}" in opened(tmp_path, 2) for rank in (0, 1))
    opened(tmp_path).remove()
    assert not list(tmp_path.iterdir())


def test_a_torn_line_is_made_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.add("one", ANSWER)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    file.add("two", ANSWER)
    path.write_bytes(path.read_bytes()[:-5])
    again = opened(tmp_path)
    assert "one" in again and "two" not in again
    assert path.read_bytes() == whole
    again.add("two", ANSWER)
    assert "two" in opened(tmp_path)


@pytest.mark.parametrize("size", [0, 3])
def test_a_head_that_was_not_written_to_its_end(tmp_path: Path, size: int) -> None:
    opened(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    opened(tmp_path).add("one", ANSWER)
    assert "one" in opened(tmp_path)


def test_another_run_answers_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(HybridError, match="holds answers of a different run"):
        AnswersFile(tmp_path).open({**IDENTITY, "arm": "base"})


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"key": "one", "text": "4", "finish": "eos", "records": [{"a": 1}]}', "7"]
)
def test_lines_of_something_else(tmp_path: Path, line: str) -> None:
    opened(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(HybridError, match="holds a line that is not a stored answer"):
        opened(tmp_path)


def test_a_key_says_which_request(tmp_path: Path) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 4}
    keys = {
        request_key("a", settings, 0),
        request_key("b", settings, 0),
        request_key("a", settings, 1),
        request_key("a", {"until": []}, 0),
    }
    assert len(keys) == 4
    assert request_key("a", json.loads(json.dumps(settings)), 0) == request_key(
        "a", dict(reversed(settings.items())), 0
    )
