"""What the thinking model reads."""

import pickle

import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.prompts import Templated, ThinkingReader
from tests.tiny_system import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

RAW, CHAT = PromptSpec(thinking="raw"), PromptSpec(thinking="chat", prefix="<think>\n")


def model(chat_template: str | None = CHAT_TEMPLATE) -> HFLM:
    return HFLM(pretrained=tiny_model(0), tokenizer=tiny_tokenizer(chat_template))


def test_auto_is_as_the_bundle_says() -> None:
    some, think = model(), "<think>\n"
    assert ThinkingReader.choose(some, "auto", CHAT).form == {
        "thinking": "chat",
        "prefix": think,
        "own_template": True,
    }
    assert ThinkingReader.choose(some, "auto", RAW).form == {"thinking": "raw", "prefix": "", "own_template": True}
    assert ThinkingReader.choose(some, "raw", CHAT).form == {
        "thinking": "raw",
        "prefix": think,
        "own_template": False,
    }
    assert ThinkingReader.choose(some, "chat", RAW).form == {"thinking": "chat", "prefix": "", "own_template": True}


def test_a_chat_prompt_needs_a_template() -> None:
    with pytest.raises(HybridError, match=r"has no chat template, which a chat prompt needs; pass thinking_prompt=raw"):
        ThinkingReader.choose(model(None), "auto", CHAT)


def test_the_context_is_wrapped_unless_the_harness_did_so() -> None:
    chat, raw = ThinkingReader(model(), CHAT), ThinkingReader(model(None), RAW, own_template=False)
    templated = "<user>1 + 1?</user><assistant>"
    assert chat.text("1 + 1?") == templated + "<think>\n"
    assert chat.text(Templated(templated)) == templated + "<think>\n"
    assert raw.text("1 + 1?") == "1 + 1?"


def test_messages_are_rendered_by_the_thinking_models_own_template() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1? "}]
    context = pickle.loads(pickle.dumps(Templated("[Be brief.][1 + 1? ]", messages)))  # as the request cache does
    own = "<system>Be brief.</system><user>1 + 1? </user><assistant>"
    assert ThinkingReader.choose(model(), "auto", RAW).text(context) == own
    assert ThinkingReader.choose(model(), "chat", RAW).text(context) == own
    assert ThinkingReader.choose(model(), "raw", RAW).text(context) == "[Be brief.][1 + 1? ]"
    assert ThinkingReader.choose(model(None), "auto", RAW).text(context) == "[Be brief.][1 + 1? ]"


def test_white_space_that_the_continuation_has_is_left_out() -> None:
    reader = ThinkingReader.choose(model(CHAT_TEMPLATE + "{{ '\n' }}"), "auto", RAW)
    messages = [{"role": "user", "content": "1?"}]
    assert reader.text(Templated("[1?] ", messages), stripped=True) == "<user>1?</user><assistant>"
    assert reader.text("1? ", stripped=True) == "1?"


def test_a_prefix_that_the_template_writes_is_not_repeated() -> None:
    thinks = ThinkingReader(model(CHAT_TEMPLATE + "{{ '<think>\\n' }}"), CHAT)
    assert thinks.text("1?") == "<user>1?</user><assistant><think>\n"


def test_an_empty_prompt_begins_as_texts_do() -> None:
    reader = ThinkingReader(model(), RAW)
    assert reader.ids("") == [reader.model.prefix_token_id]
    assert reader.model.tok_decode(reader.ids("1?")) == "1?"
