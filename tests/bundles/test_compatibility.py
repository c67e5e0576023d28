from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models
from transformers import Gemma3Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import LEVELS, check, model_card, tokenizer_digest
from lm_eval_hybrid.bundles.manifest import Manifest
from lm_eval_hybrid.common.errors import HybridError


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])))


def config(hidden: int, layers: int, kind: type = LlamaConfig, **more: object) -> LlamaConfig:
    return kind(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=1, intermediate_size=8, **more)


BASE = config(6, 4, architectures=["LlamaForCausalLM"])
THINKING = config(8, 3, architectures=["LlamaForCausalLM"])


@pytest.fixture
def manifest(make_bundle: Callable[..., Bundle], fields: dict) -> Manifest:
    digest = tokenizer_digest(tokenizer("a", "b"))
    cards = {role: {**fields[role], "tokenizer_sha256": digest} for role in ("base", "thinking")}
    return make_bundle(**cards).manifest


def test_the_same_models_are_exact(manifest: Manifest) -> None:
    assert check(manifest, BASE, THINKING).level == "exact"
    assert check(manifest, BASE, THINKING, tokenizer("a", "b"), tokenizer("a", "b")).level == "exact"
    assert check(manifest, BASE, None).level == "exact"


def test_the_less_close_model_counts(manifest: Manifest) -> None:
    assert check(manifest, BASE, config(8, 2, architectures=["LlamaForCausalLM"])).level == "architecture"
    assert check(manifest, config(6, 4, Qwen2Config, architectures=["Qwen2ForCausalLM"]), THINKING).level == "width"
    assert check(manifest, config(6, 4, Qwen2Config), config(8, 2)).level == "width"


def test_another_vocabulary_is_not_exact(manifest: Manifest) -> None:
    assert check(manifest, BASE, THINKING, tokenizer("a", "c"), tokenizer("a", "b")).level == "architecture"
    assert check(manifest, BASE, THINKING, tokenizer("b", "a"), None).level == "architecture"
    assert check(manifest, BASE, THINKING, None, tokenizer("a", "b", "c")).level == "architecture"


def test_a_card_made_from_a_model_matches_it_exactly(make_bundle: Callable[..., Bundle]) -> None:
    words = tokenizer("x", "y")
    for base in (config(6, 4), BASE, GPT2Config(n_embd=6, n_layer=4, n_head=1)):
        made = make_bundle(base=model_card("a", base, words), thinking=model_card("b", THINKING, words, revision="abc"))
        assert check(made.manifest, base, THINKING, words, words).level == "exact"


def test_the_language_part_of_a_multimodal_model_counts(manifest: Manifest) -> None:
    text = {
        "hidden_size": 6,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "layer_types": ["full_attention"] * 4,
    }
    assert check(manifest, Gemma3Config(text_config=text), THINKING).level == "width"


@pytest.mark.parametrize(
    ("base", "thinking", "message"),
    [
        (config(12, 4), THINKING, "base model has hidden size 12; .*needs 6; load org/base"),
        (BASE, config(10, 3), "thinking model has hidden size 10; .*needs 8; load org/thinking"),
        (config(6, 2), THINKING, "base model has 2 layers; .*org/base, needs layer 2 of 4"),
        (BASE, config(8, 1), "thinking model has 1 layers; .*needs layer 1 of 3"),
    ],
)
def test_models_that_cannot_be_steered_are_refused(
    manifest: Manifest, base: LlamaConfig, thinking: LlamaConfig, message: str
) -> None:
    with pytest.raises(HybridError, match=message):
        check(manifest, base, thinking)


def test_every_difference_is_listed(manifest: Manifest) -> None:
    match = check(manifest, config(6, 5, Qwen2Config), THINKING, tokenizer("b", "a"), tokenizer("a", "b"))
    assert match.level == "width"
    assert [difference.split()[:2] for difference in match.differences] == [
        ["base", "architecture"],
        ["base", "layers"],
        ["base", "vocabulary"],
    ]
    assert "base layers 5 (4 in the bundle)" in match.differences
    assert check(manifest, BASE, THINKING).differences == ()


def test_unknown_facts_count_as_different(manifest: Manifest) -> None:
    card = manifest.base.model_copy(update={"layers": None, "tokenizer_sha256": None})
    match = check(manifest.model_copy(update={"base": card}), BASE, THINKING, tokenizer("a", "b"))
    assert match.level == "architecture"
    assert "base layers 4 (unknown in the bundle)" in match.differences
    unknown = card.model_copy(update={"architecture": None})
    assert check(manifest.model_copy(update={"base": unknown}), BASE, THINKING).level == "width"
    with pytest.raises(HybridError, match=r"has 2 layers; .*needs layer 2 \(from 0\)"):
        check(manifest.model_copy(update={"base": card}), config(6, 2), THINKING)


@pytest.mark.parametrize(
    ("base", "level"),
    [
        (BASE, "exact"),
        (config(6, 5, architectures=["LlamaForCausalLM"]), "architecture"),
        (config(6, 4, Qwen2Config), "width"),
    ],
)
def test_strict_sets_the_level_that_is_refused(manifest: Manifest, base: LlamaConfig, level: str) -> None:
    for strict in LEVELS:
        if LEVELS.index(level) <= LEVELS.index(strict):
            assert check(manifest, base, THINKING, strict=strict).level == level
        else:
            with pytest.raises(HybridError, match=rf"bundle's: base .*strict={strict} needs .*set strict={level}"):
                check(manifest, base, THINKING, strict=strict)


def test_the_digest_is_of_tokens_and_ids() -> None:
    assert tokenizer_digest(tokenizer("a", "b")) == tokenizer_digest(tokenizer("a", "b"))
    others = [tokenizer("a", "b"), tokenizer("b", "a"), tokenizer("ab")]
    assert len({tokenizer_digest(other) for other in others}) == 3
    # A pinned value: digests in published bundles stay valid.
    pinned = "14d32c345449c83a1a1ecf94d73b8a4380d00f52b7e0f7055405f6b5f0448bb5"
    assert tokenizer_digest(tokenizer("a", "é")) == pinned
