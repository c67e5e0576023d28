import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.traces.problems import ProblemSource, PromptedProblem, draw
from lm_eval_hybrid.embedded.corpus import prompt, unseen
from lm_eval_hybrid.scoring.quantities import quantity
from tests import shared_data

GSM8K = shared_data.DATA / "benchmarks" / "gsm8k_train.jsonl"


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(path: Path, count: int, name: str = "q") -> ProblemSource:
    rows = [{"question": f"{name}{n}", "answer": n} for n in range(count)]
    return ProblemSource(data=str(write(path, rows)), prompt="{question}")


def prompts(problems: Sequence[PromptedProblem]) -> list[str]:
    return [problem.prompt for problem in problems]


def test_a_file_gives_its_prompts_and_answers_shuffled(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.jsonl", 50).model_copy(update={"prompt": "Q: {question} {question}?\nA:"})
    found = draw([source], 50, 0)
    assert sorted(prompts(found)) == sorted(f"Q: q{n} q{n}?\nA:" for n in range(50))
    assert all(problem.prompt.startswith(f"Q: q{problem.answer} ") for problem in found)
    assert prompts(found) != [f"Q: q{n} q{n}?\nA:" for n in range(50)]
    assert found == draw([source], 50, 0) != draw([source], 50, 1)


@pytest.mark.parametrize("kind", ["file", "embedded", "both"])
def test_the_first_problems_do_not_depend_on_the_count(tmp_path: Path, kind: str) -> None:
    file, embedded = numbered(tmp_path / "a.jsonl", 30), ProblemSource(data="embedded")
    sources = {"file": [file], "embedded": [embedded], "both": [embedded, file]}[kind]
    whole = draw(sources, 30, 3)
    assert len(set(prompts(whole))) == 30
    for count in (0, 1, 7, 29):
        assert draw(sources, count, 3) == whole[:count]


def test_sources_take_turns_and_make_up_for_one_another(tmp_path: Path) -> None:
    few, many = numbered(tmp_path / "few.jsonl", 3, "a"), numbered(tmp_path / "many.jsonl", 10, "b")
    kinds = [text[0] for text in prompts(draw([few, many], 13, 0))]
    assert "".join(kinds) == "ababab" + "b" * 7


def test_duplicate_problems_are_drawn_once(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.jsonl", 5)
    write(tmp_path / "a.jsonl", 3 * [{"question": f"q{n}", "answer": n} for n in range(5)])
    found = draw([source, source], 5, 0)
    assert len(set(prompts(found))) == 5
    with pytest.raises(HybridError, match="5 different problems; traces and calibration need 6; lower"):
        draw([source, source], 6, 0)


def test_prompts_can_be_excluded(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.jsonl", 10)
    whole = prompts(draw([source], 10, 0))
    assert prompts(draw([source], 7, 0, set(whole[1:4]))) == [whole[0], *whole[4:]]
    with pytest.raises(HybridError, match="7 different problems"):
        draw([source], 8, 0, set(whole[1:4]))


def test_embedded_problems_are_in_neither_test_set() -> None:
    found = draw([ProblemSource(data="embedded")], 20, 0)
    stream = unseen(random.Random("discover:0"))
    expected = [next(stream) for _ in range(20)]
    assert prompts(found) == [prompt(problem) for problem in expected]
    assert [problem.answer for problem in found] == [str(problem.answer) for problem in expected]
    assert not set(prompts(found)) & set(prompts(draw([ProblemSource(data="embedded")], 20, 1)))


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("48 / 2 = <<48/2=24>>24.\n#### 1,024", "1,024"),
        ("It is $\\boxed{\\frac{1}{2}}$, not more.", "\\frac{1}{2}"),
        ("\\frac{3}{4}", "\\frac{3}{4}"),
        (12, "12"),
        (0, "0"),
        (0.5, "0.5"),
        ("first \\boxed{3}\n#### 4", "4"),
    ],
)
def test_worked_solutions_end_in_their_answers(tmp_path: Path, solution: Any, answer: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "?", "a": solution}])
    (found,) = draw([ProblemSource(data=str(path), question="q", answer="a", prompt="{question}")], 1, 0)
    assert found == PromptedProblem("?", answer, "?")


def test_problems_for_traces_need_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q"}])
    assert draw([ProblemSource(data=str(path), answer=None, prompt="{question}")], 1, 0) == [
        PromptedProblem("q", question="q")
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "q"}', "a problem must have question and answer"),
        ('{"question": "", "answer": 1}', "a problem must have"),
        ('{"question": "q", "answer": "  "}', "a problem must have"),
        ('{"question": "q", "answer": null}', "a problem must have"),
        ('{"question": "q", "answer": true}', "a problem must have"),
        ('{"question": "q", "answer": ["1"]}', "a problem must have"),
        (r'{"question": "\ud83d", "answer": "1"}', "a problem must have"),
        ('["q", "1"]', "a problem must have"),
        ("17", "a problem must have"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_bad_row_is_reported_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "fine", "answer": 1}\n' + line + "\n")
    with pytest.raises(HybridError) as error:
        draw([ProblemSource(data=str(path))], 1, 0)
    assert str(error.value).startswith(f"{path}:2: ") and said in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    source = ProblemSource(data=str(tmp_path / "absent.jsonl"))
    for read in (source.content, lambda: draw([source], 1, 0)):
        with pytest.raises(HybridError, match=r"absent.jsonl: .*No such file"):
            read()


def test_a_file_is_identified_by_its_content_not_its_path(tmp_path: Path) -> None:
    first, second = numbered(tmp_path / "a.jsonl", 5), numbered(tmp_path / "b.jsonl", 5)
    former = first.content()
    assert former == second.content() != first.model_dump()
    numbered(tmp_path / "a.jsonl", 6)
    assert first.content() != former
    hub = ProblemSource(data="openai/gsm8k", config="main")
    assert hub.content() == hub.model_dump()


@pytest.mark.parametrize(
    ("data", "split"),
    [
        ("openai/gsm8k", "test"),
        ("gsm8k", "test"),
        ("OpenAI/GSM8K", "test"),
        ("HuggingFaceH4/MATH-500", "test"),
        ("openai/gsm8k", "test[:50%]"),
        ("openai/gsm8k", "train+test"),
        ("openai/gsm8k", "train[:10]+ test[5:]"),
        ("openai/gsm8k", "all"),
    ],
)
def test_test_splits_of_benchmarks_are_refused(data: str, split: str) -> None:
    with pytest.raises(ValidationError, match="must not be those of a test"):
        ProblemSource(data=data, config="main", split=split)
    assert ProblemSource(data=data, config="main", split="train[:10]").split == "train[:10]"


def test_a_prompt_without_the_question_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"prompt must hold \{question\}"):
        ProblemSource(data="embedded", prompt="Question:")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which openai/gsm8k is a data set of twenty rows."""
    folder = tmp_path / "openai" / "gsm8k"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # Which was read from the environment long ago.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = GSM8K.read_text().splitlines()[:20] if GSM8K.is_file() else []
    made = [json.dumps({"question": f"{n} + 4?", "answer": f"It is more.\n#### {n + 4}"}) for n in range(20)]
    (folder / "train.jsonl").write_text("\n".join(lines or made) + "\n")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
    )
    return folder


def test_a_data_set_of_the_hub_is_read(hub: Path) -> None:
    source = ProblemSource(data="openai/gsm8k", config="main")
    found = draw([source], 20, 0)
    assert found[:5] == draw([source], 5, 0)
    rows = [json.loads(line) for line in (hub / "train.jsonl").read_text().splitlines()]
    asked = {f"Question: {row['question']}\nAnswer:": row["answer"] for row in rows}
    assert set(prompts(found)) == set(asked)
    for problem in found:
        assert problem.answer is not None and quantity(problem.answer) is not None
        assert asked[problem.prompt].endswith(f"#### {problem.answer}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nobody/nothing"}, "nobody/nothing cannot be loaded from the hub"),
        ({"config": "other"}, "openai/gsm8k cannot be loaded"),
        ({"split": "trian"}, "trian"),
        ({"question": "problem"}, "openai/gsm8k, row 0: .*a problem must have problem and answer"),
    ],
)
def test_a_wrong_data_set_is_refused_in_one_line(hub: Path, change: dict[str, str], said: str) -> None:
    with pytest.raises(HybridError, match=said) as error:
        draw([ProblemSource(**{"data": "openai/gsm8k", "config": "main"} | change)], 3, 0)
    assert "\n" not in str(error.value)


def test_a_broken_data_set_is_refused(hub: Path) -> None:
    (hub / "train.jsonl").write_text('{"question": "q", "ans')
    with pytest.raises(HybridError, match="openai/gsm8k cannot be loaded"):
        draw([ProblemSource(data="openai/gsm8k", config="main")], 1, 0)
