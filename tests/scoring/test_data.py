"""Documents of the tasks, and clear words where they are not to be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.scoring import data

ROW = {"question": "1 + 1?", "answer": "#### 2"}
# As the hub has them: AIME's two data sets name their columns differently, and one's answers are integers.
AIME24 = {"ID": "2024-II-4", "Problem": "Find $m+n$.", "Solution": "So it is.", "Answer": 33}
AIME25 = {"id": "0", "problem": "Find $m+n$.", "answer": "33"}


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_test.jsonl", ROW, ROW | {"extra": "x"})
    documents = data.gsm8k(data_dir=str(tmp_path), behaviors="of the model", version=1.0)["test"]
    assert len(documents) == 2
    assert documents[0]["question"] == "1 + 1?"


def test_the_environment_names_a_folder_that_metadata_overrules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "math500_test.jsonl", {"problem": "a", "answer": "1"})
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    assert data.math500()["test"][0]["problem"] == "a"
    with pytest.raises(HybridError, match=r"no math500_test\.jsonl in /elsewhere"):
        data.math500(data_dir="/elsewhere")


def test_a_relative_folder_is_looked_up_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "gsm8k_test.jsonl", ROW)
    monkeypatch.chdir(tmp_path)
    assert len(data.gsm8k(data_dir="rows")["test"]) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json\n", "jsonl:1: not JSON"),
        ("3\n", "jsonl:1: found int, not an object"),
        ("[1]\n", "jsonl:1: found list, not an object"),
        ('{"question": "?"}\n', "jsonl:1: lacks answer"),
        ('{"question": "?", "answer": null}\n', "jsonl:1: lacks answer"),
        ('{"question": "?", "answer": "1"}\n{"question": 1, "answer": "1"}\n', "a column has values of several types"),
        ("", "found no documents"),
    ],
)
def test_unsound_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text(text)
    with pytest.raises(HybridError, match=complaint):
        data.gsm8k(data_dir=str(tmp_path))


def test_a_line_is_a_line_of_the_file_whatever_its_text_holds(tmp_path: Path) -> None:
    row = {"question": "one\u2028two\x85three\x0bfour", "answer": "1"}
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert data.gsm8k(data_dir=str(tmp_path))["test"][0] == row


@pytest.mark.parametrize(("name", "row"), [("aime24", AIME24), ("aime25", AIME25)])
def test_answers_are_text_and_columns_in_lower_case_from_file_and_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, object]
) -> None:
    benchmark = {"aime24": data.AIME24, "aime25": data.AIME25}[name]
    hub, _, split = benchmark.hub
    (tmp_path / hub).mkdir(parents=True)
    for path in (tmp_path / f"{name}_test.jsonl", tmp_path / hub / f"{split}.jsonl"):
        write(path, row, row)
    monkeypatch.chdir(tmp_path)
    load = getattr(data, name)
    from_file, from_hub = load(data_dir=".")["test"], load()["test"]
    assert from_file.to_list() == from_hub.to_list()
    assert (from_file[1]["problem"], from_file[1]["answer"]) == ("Find $m+n$.", "33")


def test_a_perturbation_is_a_part_of_gsm_plus(tmp_path: Path) -> None:
    kinds = ("digit expansion", "critical thinking", "digit expansion")
    rows = [{"question": f"{n}?", "answer": str(n), "perturbation_type": kind} for n, kind in enumerate(kinds)]
    write(tmp_path / "gsm_plus_test.jsonl", *rows)
    part = data.gsm_plus("digit expansion", data_dir=str(tmp_path), version=2.0)["test"]
    assert part["question"] == ["0?", "2?"]
    with pytest.raises(
        HybridError, match="'adding operation' in GSM-Plus, only critical thinking, digit expansion; use the whole"
    ):
        data.gsm_plus("adding operation", data_dir=str(tmp_path))


def test_offline_without_a_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(HybridError, match=r"cannot load data set openai/gsm8k.*data_dir=FOLDER") as failure:
        data.gsm8k()
    assert "\n" not in str(failure.value)


def test_missing_documents_are_one_line_whatever_the_model(tmp_path: Path) -> None:
    code = f"from lm_eval_hybrid.scoring import data; data.gsm8k(data_dir={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("lm-eval-hybrid: error: found no gsm8k_test.jsonl in ")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["gsm8k_embedded", "math500_embedded"])
def test_embedded_documents_come_with_the_package(name: str) -> None:
    if not (paths.embedded_dir() / f"{name}.jsonl").is_file():
        pytest.skip("the embedded documents are not written yet")
    assert len(getattr(data, name)(data_dir="ignored")["test"]) == 200
