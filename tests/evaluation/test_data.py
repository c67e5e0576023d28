"""Documents of the tasks, and clear words where they are not to be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_hybrid import paths
from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.evaluation import data

ROW = {"question": "1 + 1?", "answer": "#### 2"}


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
    with pytest.raises(HybridError, match="no such file in /elsewhere"):
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
        ("not json\n", "one JSON object a line; line 1"),
        ("3\n", "one JSON object a line; line 1"),
        ('{"question": "?"}\n', "line 1 lacks answer"),
        ("", "at least one document"),
    ],
)
def test_unsound_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text(text)
    with pytest.raises(HybridError, match=complaint):
        data.gsm8k(data_dir=str(tmp_path))


def test_offline_without_a_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(HybridError, match=r"openai/gsm8k must be on the hub.*data_dir=FOLDER") as failure:
        data.gsm8k()
    assert "\n" not in str(failure.value)


def test_missing_documents_are_one_line_whatever_the_model(tmp_path: Path) -> None:
    code = f"from lm_eval_hybrid.evaluation import data; data.gsm8k(data_dir={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("lm-eval-hybrid: error: documents are read from gsm8k_test.jsonl; found no such file")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["gsm8k_embedded", "math500_embedded"])
def test_embedded_documents_come_with_the_package(name: str) -> None:
    if not (paths.embedded_dir() / f"{name}.jsonl").is_file():
        pytest.skip("the embedded documents are not written yet")
    assert len(getattr(data, name)(data_dir="ignored")["test"]) == 200
