import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from lm_eval_hybrid.discovery.pipeline import Plan
from lm_eval_hybrid.discovery.recipe import Recipe, load
from lm_eval_hybrid.discovery.stages import Workshop
from lm_eval_hybrid.discovery.traces import Trace
from lm_eval_hybrid.report.plan import Model, costs, render
from tests.oracle.architectures import tiny_config

MODELS = {"base": Model(10**9, 4, 8), "thinking": Model(3 * 10**9, 4, 16)}


def planned(tmp_path: Path, recipe: Recipe | None = None, samples: tuple[Trace, ...] = ()) -> Plan:
    return Plan(recipe or load("embedded"), Workshop(tmp_path), {"base": "b", "thinking": "t"}, samples)


def shown(plan: Plan) -> str:
    paper = Console(width=100, file=io.StringIO())
    paper.print(render(plan, MODELS))
    return paper.file.getvalue()


def test_every_stage_has_its_cost(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = list(costs(plan, MODELS))
    assert len(found) == len(plan.stages) == 12
    traces, activations, *_ = found
    assert traces.work == "600 traces, at most 240,000 tokens"
    assert traces.flop == activations.flop == 2 * 3e9 * 240_000  # all four layers are read
    shallow = load("embedded", sae={"layers": [0], "sizes": [8]})
    assert list(costs(planned(tmp_path, shallow), MODELS))[1].flop == activations.flop / 4


def test_samples_are_counted_and_cost_no_decoding(tmp_path: Path) -> None:
    plan = planned(tmp_path, samples=(Trace("q", "x" * 35), Trace("r", "y" * 35)))
    traces = next(costs(plan, MODELS))
    assert (traces.work, traces.flop) == ("2 traces, about 20 tokens", 0.0)


def test_vectors_cost_less_the_higher_they_are_and_more_on_whole_sentences(tmp_path: Path) -> None:
    def vectors(**changes: object) -> float:
        recipe = load("embedded", vectors={"recipe": "disagreement", "layer": 1, "seeds": 1, **changes})
        return list(costs(planned(tmp_path, recipe), MODELS))[-2].flop

    assert vectors(layer=2) < vectors()
    likelihood = load("embedded-likelihood", vectors={"recipe": "likelihood", "layer": 1})
    assert list(costs(planned(tmp_path, likelihood), MODELS))[-2].flop > vectors()


def test_what_is_there_is_not_counted_again(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    before = shown(plan)
    assert before.count("to do ") == len(plan.stages)
    plan.traces.run(lambda folder: None)
    with pytest.raises(ZeroDivisionError):
        plan.activations.run(lambda folder: 1 / 0)
    after = shown(plan)
    assert after.count(" there ") == after.count(" begun ") == 1
    left = [next(line for line in text.splitlines() if line.startswith("left to do: ")) for text in (before, after)]
    flop = [float(line.split()[3].replace(",", "")) for line in left]
    assert flop[0] - flop[1] == pytest.approx(next(costs(plan, MODELS)).flop / 1e12, rel=0.1)


def test_a_judge_is_priced(tmp_path: Path) -> None:
    judge = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "wise", "price_in": 1.0, "price_out": 2.0}
    text = shown(planned(tmp_path, load("embedded", judge=judge)))
    assert "titles and grades by wise" in text and "judge wise: at most" in text and "prices given" in text


def test_sizes_are_those_of_the_model_itself() -> None:
    config = tiny_config("qwen2")
    model = AutoModelForCausalLM.from_config(config)
    assert Model.of(config) == Model(model.num_parameters(), 4, 32)
