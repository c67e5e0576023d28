"""What the thinking model reads where the base model reads the harness's context (DESIGN, section 4)."""

from dataclasses import dataclass

from lm_eval.models.huggingface import HFLM

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError


class Templated(str):
    """A context that is in a chat template. Of its own type, so that it is known as one from a cache as well."""

    __slots__ = ()


@dataclass(frozen=True)
class ThinkingReader:
    """A thinking model, and the form in which it is given a context.

    Attributes:
        prompt: the context as it is (`raw`), or as a user turn of the model's chat template (`chat`); then a prefix
            that the model's answer is made to begin with, such as `<think>`.
    """

    model: HFLM
    prompt: PromptSpec

    @classmethod
    def choose(cls, model: HFLM, wanted: str, bundle: PromptSpec) -> "ThinkingReader":
        """The form `wanted` (raw or chat), or the bundle's for `auto`.

        Raises:
            HybridError: a chat prompt for a tokenizer without chat template.
        """
        prompt = bundle if wanted == "auto" else PromptSpec(thinking=wanted, prefix=bundle.prefix)
        if prompt.thinking == "chat" and not model.tokenizer.chat_template:
            raise HybridError(
                "a chat prompt needs a tokenizer with a chat template; found none in "
                f"{model.tokenizer.name_or_path}; pass thinking_prompt=raw"
            )
        return cls(model, prompt)

    @property
    def form(self) -> dict[str, str]:
        """The prompt's form, as plain data."""
        return self.prompt.model_dump()

    def text(self, context: str, templated: bool) -> str:
        """The prompt for `context`, which is left alone where the harness has put it in a chat template already."""
        wrap = self.prompt.thinking == "chat" and not templated
        text = self.model.apply_chat_template([{"role": "user", "content": context}]) if wrap else context
        return self.prompt.prefixed(text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a prompt; for an empty one the token that the model begins texts with."""
        return self.model.tok_encode(text) or [self.model.prefix_token_id]

    def continuation_ids(self, text: str, continuation: str) -> list[int]:
        """Token ids of what follows the prompt `text`."""
        return self.model.tok_encode(text + continuation)[len(self.model.tok_encode(text)) :]
