"""What the thinking model reads."""

import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.prompts import ThinkingReader
from tests.tiny_system import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

RAW, CHAT = PromptSpec(thinking="raw"), PromptSpec(thinking="chat", prefix="<think>\n")


def model(chat_template: str | None = CHAT_TEMPLATE) -> HFLM:
    return HFLM(pretrained=tiny_model(0), tokenizer=tiny_tokenizer(chat_template))


def test_auto_is_as_the_bundle_says() -> None:
    some = model()
    assert ThinkingReader.choose(some, "auto", CHAT).form == {"thinking": "chat", "prefix": "<think>\n"}
    assert ThinkingReader.choose(some, "auto", RAW).form == {"thinking": "raw", "prefix": ""}
    assert ThinkingReader.choose(some, "raw", CHAT).form == {"thinking": "raw", "prefix": "<think>\n"}
    assert ThinkingReader.choose(some, "chat", RAW).form == {"thinking": "chat", "prefix": ""}


def test_a_chat_prompt_needs_a_template() -> None:
    with pytest.raises(HybridError, match=r"a chat template; found none in .*; pass thinking_prompt=raw"):
        ThinkingReader.choose(model(None), "auto", CHAT)


def test_the_context_is_wrapped_unless_the_harness_did_so() -> None:
    chat, raw = ThinkingReader(model(), CHAT), ThinkingReader(model(None), RAW)
    templated = "<user>1 + 1?</user><assistant>"
    assert chat.text("1 + 1?", templated=False) == templated + "<think>\n"
    assert chat.text(templated, templated=True) == templated + "<think>\n"
    assert raw.text("1 + 1?", templated=False) == "1 + 1?"


def test_a_prefix_that_the_template_writes_is_not_repeated() -> None:
    thinks = ThinkingReader(model(CHAT_TEMPLATE + "{{ '<think>\\n' }}"), CHAT)
    assert thinks.text("1?", templated=False) == "<user>1?</user><assistant><think>\n"


def test_an_empty_prompt_begins_as_texts_do() -> None:
    reader = ThinkingReader(model(), RAW)
    assert reader.ids("") == [reader.model.prefix_token_id]
    assert reader.model.tok_decode(reader.ids("1?")) == "1?"
