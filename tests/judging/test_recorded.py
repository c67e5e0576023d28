import json
import logging
from pathlib import Path

import pytest

from lm_eval_hybrid.commands.main import main
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.recipe import JudgeRecipe
from lm_eval_hybrid.judging.verdicts import Agreement, agreements, judge_recordings
from lm_eval_hybrid.results import recordings
from lm_eval_hybrid.results.recordings import scores
from tests.judging.judge_server import JudgeServer

ANSWERS = ({"base_model": "The answer is 5.", "hybrid_model": "The answer is 4."}, {"hybrid_model": "The answer is 9."})


def recording(path: Path, *questions: str) -> recordings.Recording:
    tasks = [
        {"question": question, "correct_answer": str(4 * place), "model_answers": answers}
        for place, (question, answers) in enumerate(zip(questions, ANSWERS, strict=True), 1)
    ]
    path.write_text(json.dumps({"tasks": tasks}))
    return recordings.read(path)


def lenient(prompt: str) -> str:
    """A judge that lets anything pass but what says 5."""
    return "NO" if "is 5" in prompt else "YES"


def test_each_answer_has_its_verdict_beside_its_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = recording(tmp_path / "one.json", "What is 2 + 2?", "What is 2 * 4?")
    other = recording(tmp_path / "other.json", "What is 1 + 3?", "What is 12 - 4?")
    with JudgeServer(grader=lenient) as server:
        recipe = JudgeRecipe("endpoint", "lenient", server.url, price_in=1.0, price_out=1.0)
        identity, found = judge_recordings([one, other], recipe, 3, tmp_path)
        assert len(server.asked) == 18 and sum("What is 2 * 4?" in prompt for prompt in server.prompts) == 3
        assert judge_recordings([other], recipe, 3, tmp_path)[1] == found[1:] and len(server.asked) == 18
    assert [[verdict.right for verdict in of] for of in found] == [[False, True, True]] * 2
    assert "lenient at http" in identity and "lenient" in caplog.text and "at most 18 requests" in caplog.text
    scored = list(scores(one))
    assert [(score.task, score.model) for score in scored] == [
        (0, "base_model"),
        (0, "hybrid_model"),
        (1, "hybrid_model"),
    ]
    of = agreements(scored, found[0])
    assert of["base_model"] == Agreement(both_right=0, both_wrong=1, only_first=0, only_second=0)
    assert of["hybrid_model"] == Agreement(both_right=1, both_wrong=0, only_first=0, only_second=1)


def test_the_command_shows_the_judge_beside_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recording(tmp_path / "one.json", "What is 2 + 2?", "What is 2 * 4?").path
    judge, out = tmp_path / "judge.yaml", tmp_path / "scores.jsonl"
    with JudgeServer(grader=lenient) as server:
        judge.write_text(f"kind: endpoint\nurl: {server.url}\nmodel: lenient\n")
        assert main(["rescore", str(path), "--judge", str(judge), "--repeats", "2", "--out", str(out)]) == 0
        assert len(server.asked) == 6
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "base_model 0.0% 0.0% 100.0% - 0 0 0" in lines
    assert "hybrid_model 50.0% 100.0% 50.0% 0.000 0 1 0" in lines
    assert [json.loads(line)["judge"] for line in out.read_text().splitlines()] == [False, True, True]
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 6
    assert main(["rescore", str(path), "--judge", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_without_a_question_nothing_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text(json.dumps({"tasks": [{"correct_answer": "4", "model_answers": {"base_model": "4"}}]}))
    with JudgeServer() as server:
        with pytest.raises(HybridError, match=r"none\.json, task 0: has no question recorded"):
            judge_recordings([recordings.read(path)], JudgeRecipe("endpoint", "m", server.url), 3, tmp_path)
        assert not server.asked
