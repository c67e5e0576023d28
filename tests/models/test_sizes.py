"""Footprints from configurations, compared with real models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.sizes import ModelFootprint, cached_numbers, model_footprint
from lm_eval_hybrid.models.sources import ModelSource
from tests.models import shapes
from tests.oracle.models import tiny_model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind, 0)
    model.save_pretrained(tmp_path)
    size = model_footprint(ModelSource.named("base", str(tmp_path)), {})
    assert size.parameters == model.num_parameters()
    assert size.weights == sum(weight.nbytes for weight in model.parameters())
    assert model_footprint(ModelSource.named("base", str(tmp_path)), {"dtype": "bfloat16"}).weights == size.weights // 2


def test_the_cache_is_as_large_as_after_a_pass() -> None:
    model = tiny_model("llama", 0)
    kept = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert ModelFootprint.of(model.config, torch.float32).cache(rows=1, tokens=3) == held


def test_heads_may_have_their_own_width() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=3)
    assert cached_numbers(config) == 2 * 3 * 2 * 32
    assert cached_numbers(GPT2Config(n_embd=64, n_head=4, n_layer=3)) == 2 * 3 * 64


@pytest.mark.parametrize(("name", "billions"), [("1.5b", 1.78), ("7b", 6.74), ("32b", 32.8), ("70b", 70.6)])
def test_known_shapes(name: str, billions: float) -> None:
    size = shapes.size(name)
    assert size.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert size.weights == 2 * size.parameters


def test_linear_weights_other_than_the_head_are_quantised() -> None:
    whole, quantised = shapes.size("7b"), shapes.size("7b", bits=4)
    outside = 2 * 32000 * 4096 + 65 * 4096  # embeddings and head, norms
    assert whole.parameters - whole.linear == outside
    assert quantised.weights == pytest.approx(2 * outside + 1.07 * whole.linear / 2, abs=1)
    assert shapes.size("7b", bits=8).weights > quantised.weights
    config = shapes.config("7b")
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert ModelFootprint.of(config, torch.bfloat16) == quantised


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_as_large_as_computed(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_model("llama", 0, width=128).to(torch.float16).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float16)
    size = ModelFootprint.of(AutoConfig.from_pretrained(tmp_path), torch.float16, bits)
    # transformers does not count the scales.
    assert size.weights == pytest.approx(model.get_memory_footprint(return_buffers=False), rel=0.07)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HybridError, match="cannot load the thinking model and its tokenizer from"):
        model_footprint(ModelSource.named("thinking", str(tmp_path)), {})
