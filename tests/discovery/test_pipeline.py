from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery import pipeline
from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.sae import SaeRecipe
from lm_eval_hybrid.discovery.traces import Trace
from lm_eval_hybrid.discovery.vectors import VectorRecipe
from lm_eval_hybrid.errors import HybridError
from tests.discovery.conftest import SAE_LAYER, Studied
from tests.tiny_system import tiny_tokenizer

RECIPE = Recipe(
    description="Found in noise.",
    license="MIT",
    authors=("tests",),
    citation="",
    base="the/base",
    thinking="the/thinking",
    prompts="mine.jsonl",
    max_new_tokens=40,
    holdout=0.2,
    seed=0,
    coefficients=(1.0,),
    windows=(1,),
    sae=SaeRecipe(layer=SAE_LAYER, latents=3, k=1, restarts=1, steps=5),
    vectors=VectorRecipe(layer=1, bias_epochs=1, epochs=1),
)


def test_the_bundle_says_where_it_is_from(studied: Studied, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(studied.thinking.config, "_commit_hash", "c0ffee", raising=False)
    pair = (studied.base, studied.thinking)
    card = pipeline.discover(*pair, studied.traces, RECIPE, "mine", "0.1.0", tmp_path).manifest
    assert (card.name, card.version, card.base.revision, card.thinking.revision) == ("mine", "0.1.0", None, "c0ffee")
    assert card.training.data == "12 traces of the/thinking on prompts mine.jsonl"
    assert 0 < card.training.holdout["gate_rate"] == card.steering.gate_rate < 1
    files = (Path("far/samples_a.jsonl"), Path("samples_b.jsonl"))
    card = pipeline.discover(*pair, studied.traces, RECIPE, "mine", "0.1.0", tmp_path, files).manifest
    assert card.training.data == "12 traces of the/thinking in samples_a.jsonl, samples_b.jsonl"


@pytest.mark.parametrize(
    ("named", "change", "said"),
    [
        (("My Bundle", "1.0.0"), {}, "name: .*found 'My Bundle'"),
        (("mine", "v1"), {}, "version: .*found 'v1'"),
        (("mine", "1.0.0"), {"vectors": VectorRecipe(layer=4)}, "steering.layer must be below 4"),
        (("mine", "1.0.0"), {"sae": SaeRecipe(layer=9, latents=3, k=1)}, "sae.layer must be below 4"),
        (("mine", "1.0.0"), {"windows": (1, 1)}, "windows must differ"),
    ],
)
def test_mistakes_are_found_before_the_work(
    studied: Studied, named: tuple[str, str], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(HybridError, match=said) as error:
        pipeline.check(studied.base, studied.thinking, RECIPE.model_copy(update=change), *named)
    assert "\n" not in str(error.value)


def test_the_vocabularies_must_be_one(studied: Studied) -> None:
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"])
    other = LocalBackend(studied.base.model._module, tokenizer)
    with pytest.raises(HybridError, match="share their vocabulary"):
        pipeline.check(other, studied.thinking, RECIPE, "mine", "1.0.0")


def test_models_that_agree_are_refused(studied: Studied, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="must disagree somewhere in the traces to learn from"):
        pipeline.discover(studied.thinking, studied.thinking, studied.traces, RECIPE, "mine", "1.0.0", tmp_path)


def test_held_out_traces_that_show_nothing_are_refused(studied: Studied, tmp_path: Path) -> None:
    silent = [*studied.traces, *(Trace("Q:", "") for _ in range(4))]
    with pytest.raises(HybridError, match="traces held out must have at least 2 sentences; found 0 in 3 traces"):
        pipeline.discover(studied.base, studied.thinking, silent, RECIPE, "mine", "1.0.0", tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_traces_are_refused(studied: Studied, count: int, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=rf"found {count}; give more"):
        pipeline.discover(studied.base, studied.thinking, studied.traces[:count], RECIPE, "mine", "1.0.0", tmp_path)


@pytest.mark.parametrize("holdout", [0.01, 0.5, 0.99])
def test_both_sides_of_a_split_have_a_trace(studied: Studied, holdout: float) -> None:
    some = [replace(trace) for trace in studied.read[:2]]
    parts = pipeline.split(some, holdout)
    assert len(parts.learned) == len(parts.held_out) == 1


def test_activations_are_kept_for_the_next_run(studied: Studied, tmp_path: Path) -> None:
    pair = (studied.base, studied.thinking)
    first = pipeline.discover(*pair, studied.traces, RECIPE, "mine", "1.0.0", tmp_path)
    shard = tmp_path / "activations" / "shard-00000.safetensors"
    written = shard.stat().st_mtime_ns
    again = pipeline.discover(*pair, studied.traces, RECIPE, "mine", "1.0.0", tmp_path)
    assert again.identity == first.identity
    assert shard.stat().st_mtime_ns == written
