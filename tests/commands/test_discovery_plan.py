import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from lm_eval_hybrid.commands.discovery_plan import ModelSize, costs, render
from lm_eval_hybrid.discovery.plan import DiscoveryPlan
from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe, load
from lm_eval_hybrid.discovery.stages import WorkFolder
from lm_eval_hybrid.discovery.traces.trace import Trace
from tests.oracle.architectures import tiny_config

MODELS = {"base": ModelSize(10**9, 4, 8), "thinking": ModelSize(3 * 10**9, 4, 16)}


def planned(tmp_path: Path, recipe: DiscoveryRecipe | None = None, samples: tuple[Trace, ...] = ()) -> DiscoveryPlan:
    return DiscoveryPlan(recipe or load("embedded"), WorkFolder(tmp_path), {"base": "b", "thinking": "t"}, samples)


def shown(plan: DiscoveryPlan) -> str:
    paper = Console(width=100, file=io.StringIO())
    paper.print(render(plan, MODELS))
    return paper.file.getvalue()


def test_every_stage_has_its_cost(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = costs(plan, MODELS)
    assert list(found) == [stage.name for stage in plan.stages] and len(found) == 11
    assert found["traces"].work == "600 traces, at most 240,000 tokens"
    assert found["traces"].flop == found["activations"].flop == 2 * 3e9 * 240_000  # all four layers are read
    shallow = load("embedded", sae={"layers": [0], "sizes": [8]})
    assert costs(planned(tmp_path, shallow), MODELS)["activations"].flop == found["activations"].flop / 4


def test_what_is_never_made_costs_nothing(tmp_path: Path) -> None:
    recipe = load("embedded", calibration={"problems": 0})
    found = costs(planned(tmp_path, recipe, (Trace("q", "x" * 35), Trace("r", "y" * 735))), MODELS)
    assert not {"traces", "taxonomy", "calibration"} & found.keys()
    assert found["activations"].work == "layers: 0, 1, 2, 3; 2 traces, about 10 sentences"


def test_vectors_cost_less_the_higher_they_are_and_more_on_whole_sentences(tmp_path: Path) -> None:
    def vectors(**changes: object) -> float:
        recipe = load("embedded", vectors={"recipe": "disagreement", "layer": 1, "seeds": 1, **changes})
        return costs(planned(tmp_path, recipe), MODELS)["vectors-0"].flop

    assert vectors(layer=2) < vectors()
    likelihood = load("embedded-likelihood", vectors={"recipe": "likelihood", "layer": 1})
    assert costs(planned(tmp_path, likelihood), MODELS)["vectors-0"].flop > vectors()


def test_finished_stages_are_not_counted(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    before = shown(plan)
    assert before.count("to do ") == len(plan.stages)
    plan.traces.run(lambda folder: None)
    with pytest.raises(ZeroDivisionError):
        plan.activations.run(lambda folder: 1 / 0)
    after = shown(plan)
    assert after.count(" done ") == after.count(" started ") == 1
    left = [next(line for line in text.splitlines() if line.startswith("to do: ")) for text in (before, after)]
    flop = [float(line.split()[2].replace(",", "")) for line in left]
    assert flop[0] - flop[1] == pytest.approx(costs(plan, MODELS)["traces"].flop / 1e12, rel=0.1)


def test_a_judge_is_priced(tmp_path: Path) -> None:
    judge = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "wise", "price_in": 1.0, "price_out": 2.0}
    text = shown(planned(tmp_path, load("embedded", judge=judge)))
    assert "titles and grades by a judge" in text and "judge wise: at most" in text and "prices given" in text


def test_sizes_are_those_of_the_model_itself() -> None:
    config = tiny_config("qwen2")
    model = AutoModelForCausalLM.from_config(config)
    assert ModelSize.of(config) == ModelSize(model.num_parameters(), 4, 32)
