import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.bundles.suite import compose
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.thoughts import THOUGHT_END
from lm_eval_hybrid.decoding import request
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import policy_for
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery.calibration import (
    SCORES_FILE,
    CalibrationRecipe,
    CalibrationResult,
    SteeringSetting,
    calibrate,
)
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.problems import ProblemSource, PromptedProblem, draw
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.records import HybridAnswer
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.results.statistics import gap
from lm_eval_hybrid.scoring.reader.reading import read
from tests.discovery.conftest import RAW, Studied
from tests.tiny_system import CHAT_TEMPLATE, TinySystem, write_system

STRONG = SteeringSetting(coefficients=(0.5, 1.0))
OWN = SteeringSetting(coefficients=(0.5, 1.0), windows=(1, 0))  # of the tiny system's bundle
WEAK = SteeringSetting(coefficients=(0.01,))
TOKENS, DOCUMENTS = 40, 10
STOPS = ("n", "P", "I", "u", "e")  # an answer cut at its maximum length counts as wrong
OPEN = PromptSpec(thinking="chat", prefix="<think>\n")


def steering_of(bundle: Path) -> Steering:
    return Steering.from_suite(compose([Bundle.load(bundle)]))


def loaded(system: TinySystem, prompt: PromptSpec) -> ModelPair:
    folders = (system.base, system.thinking)
    return ModelPair(
        *(
            LocalBackend(AutoModelForCausalLM.from_pretrained(f).eval(), AutoTokenizer.from_pretrained(f))
            for f in folders
        ),
        prompt,
    )


@pytest.fixture(scope="module", params=[RAW, OPEN], ids=["raw", "open-thought"])
def prompt(request: pytest.FixtureRequest) -> PromptSpec:
    return request.param


@pytest.fixture(scope="module")
def system(prompt: PromptSpec, tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"), CHAT_TEMPLATE, prompt)


def evaluated(system: TinySystem, folder: Path, task: str, arm: str) -> list[dict[str, Any]]:
    """The harness's samples of one arm, in the documents' order."""
    manager = TaskManager(
        include_path=str(paths.tasks_dir()), include_defaults=False, metadata={"data_dir": str(folder)}
    )
    model = HybridLM(**system.arguments, arm=arm, batch_size=5)
    results = simple_evaluate(
        model,
        tasks=[task],
        task_manager=manager,
        gen_kwargs={"max_gen_toks": TOKENS, "until": list(STOPS)},
        bootstrap_iters=0,
    )
    assert results is not None
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "file", "question", "form"),
    [
        ("gsm8k_hybrid", "gsm8k_test.jsonl", "question", "Question: {question}\nAnswer:"),
        ("math500_hybrid", "math500_test.jsonl", "problem", "Problem: {question}\nAnswer:"),
    ],
)
def test_scores_are_those_of_the_harness(
    system: TinySystem, prompt: PromptSpec, tmp_path: Path, task: str, file: str, question: str, form: str
) -> None:
    arms = ("base", "thinking", "hybrid")

    def write(answers: Sequence[str]) -> None:
        sign = "So it is.\n#### " if question == "question" else ""
        rows = [{question: f"{n} and {n}?", "answer": f"{sign}{answer}"} for n, answer in enumerate(answers)]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(["1"] * DOCUMENTS)
    said = [[_said(s["resps"][0][0]) for s in evaluated(system, tmp_path, task, arm)] for arm in arms]
    # Each document's true answer is taken from one of the arms in turn, so that every arm is right at times.
    write([said[i % 3][i] or "1" for i in range(DOCUMENTS)])
    source = ProblemSource(data=str(tmp_path / file), question=question, prompt=form)
    drawn = {problem.prompt: problem for problem in draw([source], DOCUMENTS, 0)}
    problems = [drawn[form.replace("{question}", f"{n} and {n}?")] for n in range(DOCUMENTS)]
    recipe = CalibrationRecipe(settings=(OWN,), max_new_tokens=TOKENS, stop=STOPS, batch=4)
    found = calibrate(loaded(system, prompt), [steering_of(system.bundle)], problems, recipe, 0, tmp_path)
    results = [found.base, found.thinking, *(trial.result for trial in found.trials)]
    for arm, row in zip(arms, results, strict=True):
        samples = evaluated(system, tmp_path, task, arm)
        assert list(row.scores) == [sample["exact_match"] for sample in samples]
        totals = [sample["resps"][0][0].generation.records for sample in samples]
        records = [record for some in totals for record in some]
        assert row.steered == sum(record.steered for record in records) / len(records)
        assert row.changed == sum(record.changed for record in records) / len(records)
    assert any(sum(row.scores) for row in results)


def final_answer(text: str, cut: bool | None = None) -> str | None:
    found = read(text, cut=cut)
    return None if found is None else found.answer


def _said(response: HybridAnswer) -> str | None:
    return final_answer(response, cut=response.generation.finish == "length")


def answers_of(studied: Studied, count: int, arm: str = "thinking") -> list[PromptedProblem]:
    """Problems whose true answer is the arm's."""
    prompts = [f"Question {i}: one. two?" for i in range(count)]
    decoder = HybridDecoder(studied.base, studied.thinking, None, policy_for(arm, STRONG.policy()))
    answers = decoder.generate([studied.pair.prompts(text) for text in prompts], TOKENS, STOPS)
    pairs = zip(prompts, answers, strict=True)
    return [
        PromptedProblem(text, final_answer(answer.text, cut=answer.finish == "length") or "nothing at all")
        for text, answer in pairs
    ]


@pytest.fixture(scope="module")
def problems(studied: Studied) -> list[PromptedProblem]:
    return answers_of(studied, 6)


def noise(seed: int, bundle: Steering) -> Steering:
    generator = torch.Generator().manual_seed(seed)
    return replace(bundle, vectors=3 * torch.randn(bundle.vectors.shape, generator=generator))


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> list[Steering]:
    steering = steering_of(write_system(tmp_path_factory.mktemp("fits")).bundle)
    return [noise(seed, steering) for seed in (1, 2)]


def found_with(
    studied: Studied, fits: list[Steering], problems: list[PromptedProblem], folder: Path, *settings: SteeringSetting
) -> CalibrationResult:
    recipe = CalibrationRecipe(settings=settings, max_new_tokens=TOKENS, stop=STOPS, batch=5)
    return calibrate(studied.pair, fits, problems, recipe, 0, folder)


def test_the_first_setting_is_evaluated_with_all_fits_the_others_with_the_best(
    studied: Studied, fits: list[Steering], problems: list[PromptedProblem], tmp_path: Path
) -> None:
    found = found_with(studied, fits, problems, tmp_path, STRONG, WEAK)
    assert [(trial.fit, trial.setting) for trial in found.trials[:2]] == [(0, STRONG), (1, STRONG)]
    first = min(found.trials[:2], key=lambda trial: (-sum(trial.result.scores), trial.result.steered))
    assert [(trial.fit, trial.setting) for trial in found.trials[2:]] == [(first.fit, WEAK)]
    base, thinking = found.base, found.thinking
    assert 0 <= sum(base.scores) < sum(thinking.scores), "the true answers are the thinking model's"
    for trial in found.trials:
        assert trial.gap == gap(base.scores, trial.result.scores, thinking.scores, 0)
        assert 0 <= trial.result.changed <= trial.result.steered <= 1
    (chosen,) = (trial for trial in found.trials if found.is_chosen(trial))
    assert sum(chosen.result.scores) == max(sum(trial.result.scores) for trial in found.trials)


def test_the_number_of_right_answers_decides_first(studied: Studied, fits: list[Steering], tmp_path: Path) -> None:
    # With zero vectors the hybrid answers like the base, which is right here.
    still = replace(fits[0], vectors=torch.zeros_like(fits[0].vectors), bias=torch.zeros_like(fits[0].bias))
    problems = answers_of(studied, 6, "base")
    found = found_with(studied, [fits[0], still, fits[1]], problems, tmp_path, STRONG)
    base, hybrid = found.base, found.trials[1].result
    assert found.fit == 1 and hybrid.scores == base.scores and sum(base.scores) > 0
    assert hybrid.changed == 0


def write_scores(tmp_path: Path, rows: Sequence[tuple[int, SteeringSetting, int, float]]) -> None:
    """Write the scores of a finished calibration: (fit, setting, right answers, share steered) of each trial."""
    fixed = [("base", None, None, 0, 0.0), ("thinking", None, None, 4, 1.0)]
    lines = [(arm, fit, setting, right, steered) for arm, fit, setting, right, steered in fixed]
    lines += [("hybrid", *row) for row in rows]
    with (tmp_path / SCORES_FILE).open("w") as file:
        for arm, fit, setting, right, steered in lines:
            kept = None if setting is None else {name: getattr(setting, name) for name in setting.__dataclass_fields__}
            scores = [1] * right + [0] * (4 - right)
            row = {"arm": arm, "fit": fit, "setting": kept, "scores": scores, "steered": steered, "changed": 0.0}
            file.write(json.dumps(row) + "\n")


SMALL = SteeringSetting(coefficients=(1.0,))
WIDE = SteeringSetting(coefficients=(1.0,), windows=(1, 2))
MLP = SteeringSetting(select="mlp", coefficients=(1.0, 2.0, 3.0), windows=(2,))


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0, STRONG, 2, 0.1), (1, STRONG, 3, 0.9), (1, WIDE, 2, 0.0)], (1, STRONG)),
        ([(0, STRONG, 2, 0.2), (1, STRONG, 2, 0.1), (1, WIDE, 2, 0.2)], (1, STRONG)),
        ([(0, OWN, 2, 0.2), (1, OWN, 2, 0.2), (0, STRONG, 2, 0.2)], (0, STRONG)),
        ([(0, STRONG, 2, 0.2), (1, STRONG, 2, 0.2), (0, MLP, 2, 0.2), (0, SMALL, 2, 0.2)], (0, MLP)),
        ([(0, STRONG, 2, 0.2), (1, STRONG, 2, 0.2)], (0, STRONG)),
    ],
    ids=["right answers", "fewer steered", "fewer candidates", "the first", "the first fit"],
)
def test_of_equal_trials_the_one_that_steers_less_wins(
    studied: Studied, fits: list[Steering], tmp_path: Path, rows: list, best: tuple[int, SteeringSetting]
) -> None:
    write_scores(tmp_path, rows)
    settings = list(dict.fromkeys(row[1] for row in rows))
    found = found_with(studied, fits, [PromptedProblem(str(i), "1") for i in range(4)], tmp_path, *settings)
    assert (found.fit, found.setting) == best
    assert len(found.trials) == len(rows)


def test_scores_in_the_folder_are_not_computed_again(
    studied: Studied,
    fits: list[Steering],
    problems: list[PromptedProblem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = found_with(studied, fits, problems, tmp_path / "whole", STRONG, WEAK)
    stream, begun = HybridDecoder.stream, []

    def interrupted(self: HybridDecoder, *arguments: Any) -> Any:
        begun.append(self)
        if len(begun) in (1, 3, 6):
            raise KeyboardInterrupt
        return stream(self, *arguments)

    monkeypatch.setattr(HybridDecoder, "stream", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            found_with(studied, fits, problems, tmp_path / "some", STRONG, WEAK)
    assert found_with(studied, fits, problems, tmp_path / "some", STRONG, WEAK) == whole
    assert len(begun) == 3 + 2 + len(whole.trials)
    assert found_with(studied, fits, problems, tmp_path / "some", STRONG, WEAK) == whole
    assert len(begun) == 3 + 2 + len(whole.trials)
    files = [(tmp_path / name / SCORES_FILE).read_bytes() for name in ("whole", "some")]
    assert files[0] == files[1]


def test_the_trial_of_a_torn_line_is_repeated(
    studied: Studied, fits: list[Steering], problems: list[PromptedProblem], tmp_path: Path
) -> None:
    whole = found_with(studied, fits, problems, tmp_path, STRONG)
    path = tmp_path / SCORES_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert found_with(studied, fits, problems, tmp_path, STRONG) == whole
    assert path.read_bytes() == content


def test_without_a_gap_the_most_right_answers_win(studied: Studied, fits: list[Steering], tmp_path: Path) -> None:
    problems = answers_of(studied, 6, "base")
    found = found_with(studied, fits, problems, tmp_path, STRONG)
    assert sum(found.base.scores) >= sum(found.thinking.scores)
    assert {trial.gap.recovered for trial in found.trials} == {None} and found.trials[
        0
    ].gap.reason == "thinking is not above base"


def test_problems_without_answers_are_refused(studied: Studied, fits: list[Steering], tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="some calibration problems have no answer"):
        found_with(studied, fits, [PromptedProblem("one", "1"), PromptedProblem("two")], tmp_path, STRONG)


def test_a_problem_longer_than_the_context_counts_as_wrong(fits: list[Steering], tmp_path: Path) -> None:
    short = loaded(write_system(tmp_path / "system", context=40), RAW)
    problems = [PromptedProblem("x" * length, "1") for length in (5, 39, 40, 41, 100)]
    recipe = CalibrationRecipe(settings=(STRONG,), max_new_tokens=TOKENS)
    found = calibrate(short, fits, problems, recipe, 0, tmp_path)
    assert all(
        r.scores[2:] == (0, 0, 0) for r in (found.base, found.thinking, *(trial.result for trial in found.trials))
    )


@pytest.mark.parametrize(
    ("prompt", "stops", "right"),
    [(OPEN, STOPS, False), (RAW, STOPS, True), (RAW, (), False)],
    ids=["a thought that never closes", "stopped", "cut by a limit"],
    indirect=["prompt"],
)
def test_an_unfinished_answer_counts_as_wrong(
    system: TinySystem, prompt: PromptSpec, stops: tuple[str, ...], right: bool, tmp_path: Path
) -> None:
    pair = loaded(system, prompt)
    texts = [f"{n} and {n}?" for n in range(DOCUMENTS)]
    decoder = HybridDecoder(pair.thinking, None, None, replace(STRONG.policy(), gate="never"))
    prompts = [pair.prompts(text).thinking_ids for text in texts]
    answers = decoder.generate([request.Prompt(ids, ids) for ids in prompts], TOKENS, stops)
    finish = "stop" if stops else "length"
    kept = [(text, a) for text, a in zip(texts, answers, strict=True) if final_answer(a.text) and a.finish == finish]
    assert kept and not any(THOUGHT_END in answer.text for _, answer in kept)
    problems = [PromptedProblem(text, final_answer(answer.text)) for text, answer in kept]
    recipe = CalibrationRecipe(settings=(STRONG,), max_new_tokens=TOKENS, stop=stops)
    found = calibrate(pair, [steering_of(system.bundle)], problems, recipe, 0, tmp_path)
    assert set(found.thinking.scores) == {int(right)}
