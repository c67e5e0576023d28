"""What the thinking model reads where the base model reads the harness's context (DESIGN, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lm_eval_hybrid.behaviors.manifest import Prompt
from lm_eval_hybrid.errors import HybridError


@dataclass(frozen=True)
class ThinkingPrompt:
    """The form of the thinking model's prompt.

    Attributes:
        form: the context as it is (`raw`), or as a user turn of the thinking model's chat template (`chat`).
        prefix: what its answer is made to begin with, such as `<think>\\n`; not repeated after a template that does.
    """

    form: Literal["raw", "chat"]
    prefix: str

    @classmethod
    def choose(cls, wanted: str, bundle: Prompt, has_template: bool, model: str) -> "ThinkingPrompt":
        """The form `wanted`, or the bundle's for `auto`.

        Raises:
            HybridError: a chat prompt for a tokenizer without chat template.
        """
        form = bundle.thinking if wanted == "auto" else wanted
        if form == "chat" and not has_template:
            raise HybridError(
                f"a chat prompt needs a tokenizer with a chat template; found none in {model}; pass thinking_prompt=raw"
            )
        return cls("chat" if form == "chat" else "raw", bundle.prefix)

    def render(self, context: str, templated: bool, template: Callable[[list[dict[str, str]]], str]) -> str:
        """The prompt for `context`, which is left alone where the harness has put it in a chat template already."""
        wrap = self.form == "chat" and not templated
        text = template([{"role": "user", "content": context}]) if wrap else context
        written = self.prefix.strip() and text.rstrip().endswith(self.prefix.strip())
        return text if written else text + self.prefix
