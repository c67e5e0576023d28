from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.recipe import JudgeRecipe, read


def test_a_judge_is_read_from_a_file_of_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("kind: endpoint\nmodel: gpt-4.1\nurl: https://host/v1\nprice_in: 2\nprice_out: 8\n")
    assert read(path) == JudgeRecipe("endpoint", "gpt-4.1", "https://host/v1", price_in=2.0, price_out=8.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: endpoint\nmodel: m\n", r"judge\.yaml: judge: url must be http.*found none; fix it"),
        ("model: m\n", r"judge\.yaml: judge\.kind: "),
        ("kind: harness\nmodel: hf\nretries: -1\n", r"judge\.yaml: judge\.retries: "),
        ("kind: harness\nmodel: hf\nsentences: 5\n", r"judge\.yaml: judge\.sentences: "),
        ("- kind\n", r"judge\.yaml: a judge is of type list; it must be a mapping; fix it, such as kind: endpoint"),
        ("a: *b\n", r"judge\.yaml: a judge is not plain YAML"),
    ],
)
def test_what_is_no_judge_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(text)
    with pytest.raises(HybridError, match=said):
        read(tmp_path / "judge.yaml")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"none\.yaml: cannot be read \(No such file"):
        read(tmp_path / "none.yaml")
