"""The recipes of the paper's pairs, each run in full on small random models of the same architectures.

Only counts and epochs are reduced. The models have as many layers as the recipe's layers require, and padded
vocabularies; the tokenizers' special tokens differ as the real ones' do; the data sets are in the folders that the
recipe names.
"""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.suite import compose
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.discovery import bundling
from lm_eval_hybrid.discovery.bundling import make_findings
from lm_eval_hybrid.discovery.pipeline import DiscoveryRun
from lm_eval_hybrid.discovery.plan import DiscoveryPlan
from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe, load
from lm_eval_hybrid.discovery.stages import WorkFolder
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.report import findings_page
from tests.discovery.test_recipe import PAPER

WIDTH, PADDED = 16, 280
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
R1 = ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")  # noqa: RUF001
LLAMA = ("<|end_of_text|>", "<|begin_of_text|>")
TEMPLATES = {
    "r1": "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m['content'] }}{% endfor %}"  # noqa: RUF001
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",  # noqa: RUF001
    "qwq": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "orz": "A talk. User: {% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}\nAssistant: <think>{% endif %}",
}


def tokenizer(specials: tuple[str, ...], template: str | None = None, begins: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and special tokens: the first ends a text, the second may begin it."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    for special in specials:
        thought = "think>" in special  # which real tokenizers keep in decoded text
        made.add_tokens([special]) if thought else made.add_special_tokens([AddedToken(special, special=True)])
    if begins:
        mark = specials[1]
        made.post_processor = TemplateProcessing(single=f"{mark} $A", special_tokens=[(mark, made.token_to_id(mark))])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=specials[0],
        pad_token=specials[0],
        bos_token=specials[1] if begins else None,
        chat_template=template,
    )


def tokenizers(name: str) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The tokenizers of base and thinking model."""
    kind = name.partition("-")[0]
    if name == "r1-llama-8b":
        return tokenizer(LLAMA, begins=True), tokenizer(R1, TEMPLATES["r1"], begins=True)
    specials = {"r1": R1, "qwq": (*QWEN, "<think>", "</think>"), "orz": QWEN}[kind]
    return tokenizer(QWEN), tokenizer(specials, TEMPLATES[kind], begins=kind == "r1")


def model(name: str, layers: int) -> PreTrainedModel:
    """A random model of the base's class, the same each time."""
    sizes = {
        "vocab_size": PADDED,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    if name == "r1-llama-8b":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        }
        made: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope))
    else:
        made = Qwen2ForCausalLM(Qwen2Config(**sizes))
    made.config.architectures = [type(made).__name__]  # as from_pretrained does
    heard = torch.ones(PADDED, dtype=torch.bool)
    for token in (*b"abcdefghijklmnopqrstuvwxyz0123456789 ....????!!!!\n\n",):
        (number,) = tokenizer(QWEN)(chr(token)).input_ids
        heard[number] = False
    with torch.no_grad():
        for key, weight in made.named_parameters():
            if "norm" not in key:
                weight.copy_(torch.randn_like(weight) * 0.3)
        made.lm_head.weight[heard] = 0
    return made.float().eval()


def pair_of(name: str, recipe: DiscoveryRecipe) -> ModelPair:
    """A base, and a thinking model that differs from it by noise."""
    layers = max(*recipe.sae.layers, recipe.vectors.layer) + 2
    base, thinking = model(name, layers), model(name, layers)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in thinking.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    backends = (LocalBackend(*parts) for parts in zip((base, thinking), tokenizers(name), strict=True))
    return ModelPair(*backends, recipe.prompt)


def shrunken(recipe: DiscoveryRecipe) -> DiscoveryRecipe:
    """The recipe with smaller counts and fewer epochs."""
    vectors = {"bias_epochs": 1, "epochs": 1}
    changes: dict[str, Any] = {
        "sae": {**recipe.model_dump()["sae"], "steps": 40},
        "traces": {"count": 24, "max_new_tokens": 40, "holdout": 0.2},
        "vectors": {**recipe.model_dump()["vectors"], **vectors},
        "calibration": {**recipe.model_dump()["calibration"], "problems": 2, "max_new_tokens": 4},
    }
    return DiscoveryRecipe.model_validate({**recipe.model_dump(), **changes})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change into a folder with the recipes' data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sets = {
        ("openai/gsm8k", "main"): [{"question": f"{n} + 4?", "answer": f"More.\n#### {n + 4}"} for n in range(20)],
        ("rasbt/math_full_minus_math500", "default"): [
            {"problem": f"Half of ${n}$?", "solution": "So.", "answer": rf"\frac{{{n}}}{{2}}"} for n in range(20)
        ],
    }
    for (name, config), rows in sets.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts = f"- config_name: {config}\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")


FAST = ("r1-qwen-1.5b", "orz-0.5b")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PAPER])
def test_a_recipe_runs_to_a_bundle_that_decodes(
    name: str, data: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = shrunken(load(name))
    pair = pair_of(name, recipe)
    bundling.check_manifest(pair, recipe, name, "0.1.0")
    plan = DiscoveryPlan(recipe, WorkFolder(tmp_path / "work"), {"base": "b", "thinking": "t"})
    run = DiscoveryRun(plan, pair)
    with caplog.at_level(logging.WARNING):
        found = run.run()
    assert found is not None and "no thought" not in caplog.text
    assert {trace.prompt.partition(":")[0] for trace in found.traces} == {"Question", "Problem"}
    out = tmp_path / name / "0.1.0"
    bundle = bundling.make_bundle(found, pair, recipe, name, "0.1.0").save(out)
    assert not contents.faults(out)
    card, (steered, read, latents) = Bundle.load(out).manifest, PAPER[name]
    assert (card.steering.layer, card.sae.layer, card.sae.latents, card.sae.k) == (steered, read, latents, 3)
    assert (card.base.id, card.thinking.id, card.prompt) == (recipe.base, recipe.thinking, recipe.prompt)
    assert card.base.architecture == card.thinking.architecture == type(pair.base.model._module).__name__
    assert 0 < len(card.behaviors) <= latents and card.steering.gate_rate
    findings_page.write(make_findings(found, bundle), tmp_path / "page.html")

    steering = Steering.from_suite(compose([Bundle.load(out)]))
    tried = run.steering(found.fitted)
    assert torch.equal(steering.vectors, tried.vectors) and torch.equal(steering.bias, tried.bias)
    assert steering.keys == tried.keys and steering.sae_layer == tried.sae_layer
    policy = Policy(select=card.steering.select, coefficients=card.steering.coefficients, windows=card.steering.windows)
    decoder = HybridDecoder(pair.base, pair.thinking, steering, policy)
    (answer,) = decoder.generate([pair.prompts("Question: 1 + 1?\nAnswer:")], 20)
    assert any(record.steered for record in answer.records)


@pytest.mark.parametrize("name", PAPER)
def test_a_prompt_opens_one_thought(name: str) -> None:
    recipe = load(name)
    base, thinking = tokenizers(name)
    tiny = model(name, 1)
    text = ModelPair(LocalBackend(tiny, base), LocalBackend(tiny, thinking), recipe.prompt).thinking_text(
        "Question: 1?"
    )
    assert text.count("<think>") == 1 and text.rstrip().endswith("<think>") and "Question: 1?" in text
