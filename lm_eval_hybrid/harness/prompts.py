"""What the thinking model reads where the base model reads the harness's context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.decoding.request import require_chat_template, thinking_text


class Templated(str):
    """A context that the harness has put into the base model's chat template.

    Attributes:
        messages: the chat that was rendered, so that the thinking model's own template can render it too.
        add_generation_prompt: whether the context ends with the start of the assistant's turn.
    """

    messages: Sequence[dict[str, str]]
    add_generation_prompt: bool

    def __new__(
        cls, text: str, messages: Sequence[dict[str, str]] = (), add_generation_prompt: bool = True
    ) -> "Templated":
        self = super().__new__(cls, text)  # the request cache unpickles it from the text, then sets the attributes
        self.messages, self.add_generation_prompt = messages, add_generation_prompt
        return self


@dataclass(frozen=True)
class ThinkingReader:
    """A thinking model, and the form in which it reads contexts.

    Attributes:
        prompt: the context as it is (`raw`) or as a user turn in the model's chat template (`chat`); then a prefix that
            the model's answer is made to begin with, such as `<think>`.
        own_template: whether messages that the harness has put into the base's chat template are rendered by the
            thinking model's own instead.
    """

    model: HFLM
    prompt: PromptSpec
    own_template: bool = True

    @classmethod
    def choose(cls, model: HFLM, form: str, bundle: PromptSpec) -> "ThinkingReader":
        """A reader with the given form (`raw` or `chat`), or the bundle's for `auto`.

        Raises:
            HybridError: a chat prompt for a tokenizer without a chat template.
        """
        prompt = bundle if form == "auto" else PromptSpec(thinking=form, prefix=bundle.prefix)
        if prompt.thinking == "chat":
            require_chat_template(model.tokenizer, "a chat prompt", "pass thinking_prompt=raw")
        return cls(model, prompt, own_template=bool(model.tokenizer.chat_template) and form != "raw")

    @property
    def form(self) -> dict[str, Any]:
        """The prompt's form, as plain data."""
        return {**self.prompt.model_dump(), "own_template": self.own_template}

    def text(self, context: str, stripped: bool = False) -> str:
        """The thinking model's prompt for a context.

        Args:
            stripped: leave out trailing white space, which the harness has moved into the continuation.
        """
        if isinstance(context, Templated):
            text: str = context
            if self.own_template and context.messages:
                text = self.model.apply_chat_template(list(context.messages), context.add_generation_prompt)
            return self.prompt.prefixed(text.rstrip() if stripped else text)
        text = context.rstrip() if stripped else context
        return thinking_text(self.prompt, text, self.model.apply_chat_template)

    def ids(self, text: str) -> list[int]:
        """Token ids of a prompt; if it is empty, the token that starts a text."""
        return self.model.tok_encode(text) or [self.model.prefix_token_id]

    def continuation_ids(self, text: str, continuation: str) -> list[int]:
        """Token ids of `continuation` after the prompt `text`; alone, if one token would span the two."""
        joined: list[int] = self.model.tok_encode(text + continuation)[len(self.model.tok_encode(text)) :]
        return joined or list(self.model.tok_encode(continuation, add_special_tokens=False))
