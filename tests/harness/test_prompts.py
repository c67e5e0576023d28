"""What the thinking model reads."""

import pytest

from lm_eval_hybrid.behaviors.manifest import Prompt
from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.harness.prompts import ThinkingPrompt

CHAT = Prompt(thinking="chat", prefix="<think>\n")


def template(messages: list[dict[str, str]]) -> str:
    return f"[{messages[0]['role']}: {messages[0]['content']}]"


def template_that_thinks(messages: list[dict[str, str]]) -> str:
    return template(messages) + "<think>\n"


def test_auto_is_as_the_bundle_says() -> None:
    assert ThinkingPrompt.choose("auto", CHAT, True, "m") == ThinkingPrompt("chat", "<think>\n")
    assert ThinkingPrompt.choose("auto", Prompt(thinking="raw"), True, "m") == ThinkingPrompt("raw", "")
    assert ThinkingPrompt.choose("raw", CHAT, False, "m") == ThinkingPrompt("raw", "<think>\n")
    assert ThinkingPrompt.choose("chat", Prompt(thinking="raw"), True, "m") == ThinkingPrompt("chat", "")


def test_a_chat_prompt_needs_a_template() -> None:
    with pytest.raises(HybridError, match="found none in some/model; pass thinking_prompt=raw"):
        ThinkingPrompt.choose("auto", CHAT, False, "some/model")


def test_the_context_is_wrapped_unless_the_harness_did_so() -> None:
    chat, raw = ThinkingPrompt("chat", "<think>\n"), ThinkingPrompt("raw", "")
    assert chat.render("1 + 1?", False, template) == "[user: 1 + 1?]<think>\n"
    assert chat.render("[user: 1 + 1?]", True, template) == "[user: 1 + 1?]<think>\n"
    assert raw.render("1 + 1?", False, template) == "1 + 1?"


def test_a_prefix_that_the_template_writes_is_not_repeated() -> None:
    assert ThinkingPrompt("chat", "<think>\n").render("1?", False, template_that_thinks) == "[user: 1?]<think>\n"
