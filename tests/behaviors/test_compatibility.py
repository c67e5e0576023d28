from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models
from transformers import Gemma3Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.behaviors.compatibility import check, model_card, tokenizer_digest
from lm_eval_hybrid.errors import HybridError


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])))


def config(hidden: int, layers: int, kind: type = LlamaConfig, **more: object) -> LlamaConfig:
    return kind(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=1, intermediate_size=8, **more)


BASE = config(6, 4, architectures=["LlamaForCausalLM"])
THINKING = config(8, 3, architectures=["LlamaForCausalLM"])


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle], fields: dict) -> Bundle:
    digest = tokenizer_digest(tokenizer("a", "b"))
    cards = {role: {**fields[role], "tokenizer_sha256": digest} for role in ("base", "thinking")}
    return make_bundle(**cards)


def test_the_same_models_are_exact(bundle: Bundle) -> None:
    assert check(bundle, BASE, THINKING) == "exact"
    assert check(bundle, BASE, THINKING, tokenizer("a", "b"), tokenizer("a", "b")) == "exact"
    assert check(bundle, BASE, None) == "exact"


def test_the_weaker_model_counts(bundle: Bundle) -> None:
    assert check(bundle, BASE, config(8, 2, architectures=["LlamaForCausalLM"])) == "architecture"
    assert check(bundle, config(6, 4, Qwen2Config, architectures=["Qwen2ForCausalLM"]), THINKING) == "width"
    assert check(bundle, config(6, 4, Qwen2Config), config(8, 2)) == "width"


def test_another_vocabulary_is_not_exact(bundle: Bundle) -> None:
    assert check(bundle, BASE, THINKING, tokenizer("a", "c"), tokenizer("a", "b")) == "architecture"
    assert check(bundle, BASE, THINKING, tokenizer("b", "a"), None) == "architecture"
    assert check(bundle, BASE, THINKING, None, tokenizer("a", "b", "c")) == "architecture"


def test_a_card_made_from_a_model_matches_it_exactly(make_bundle: Callable[..., Bundle]) -> None:
    words = tokenizer("x", "y")
    for base in (config(6, 4), BASE, GPT2Config(n_embd=6, n_layer=4, n_head=1)):
        made = make_bundle(base=model_card("a", base, words), thinking=model_card("b", THINKING, words, revision="abc"))
        assert check(made, base, THINKING, words, words) == "exact"


def test_the_language_part_of_a_multimodal_model_counts(bundle: Bundle) -> None:
    text = {
        "hidden_size": 6,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "layer_types": ["full_attention"] * 4,
    }
    assert check(bundle, Gemma3Config(text_config=text), THINKING) == "width"


@pytest.mark.parametrize(
    ("base", "thinking", "message"),
    [
        (config(12, 4), THINKING, "base model of hidden size 6 .*found 12; load org/base"),
        (BASE, config(10, 3), "thinking model of hidden size 8 .*found 10; load org/thinking"),
        (config(6, 2), THINKING, "layer 2 of the base model .*of 4, in org/base.*found 2 layers"),
        (BASE, config(8, 1), "layer 1 of the thinking model .*found 1 layers"),
    ],
)
def test_what_cannot_be_steered_is_refused(
    bundle: Bundle, base: LlamaConfig, thinking: LlamaConfig, message: str
) -> None:
    with pytest.raises(HybridError, match=message):
        check(bundle, base, thinking)


def test_the_digest_is_of_tokens_and_ids() -> None:
    assert tokenizer_digest(tokenizer("a", "b")) == tokenizer_digest(tokenizer("a", "b"))
    others = [tokenizer("a", "b"), tokenizer("b", "a"), tokenizer("ab")]
    assert len({tokenizer_digest(other) for other in others}) == 3
    # A pinned value: digests in published bundles stay valid.
    pinned = "14d32c345449c83a1a1ecf94d73b8a4380d00f52b7e0f7055405f6b5f0448bb5"
    assert tokenizer_digest(tokenizer("a", "é")) == pinned
