"""The prompt of each model, as text and as token ids, for the same context."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError


def thinking_text(form: PromptSpec, context: str, apply_chat_template: Callable[[list[dict[str, str]]], str]) -> str:
    """The thinking model's prompt where the base model reads `context`.

    Args:
        form: whether the context stays as it is (`raw`) or becomes a user turn (`chat`), and the prefix that follows.
        apply_chat_template: renders messages in the thinking model's template, up to where its answer begins.
    """
    if form.thinking == "chat":
        context = apply_chat_template([{"role": "user", "content": context}])
    return form.prefixed(context)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, needed_by: str, fix: str) -> None:
    """Raise HybridError if `tokenizer` has no chat template; `needed_by` and `fix` are parts of the message."""
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this model"
        raise HybridError(f"the tokenizer of {name} has no chat template, which {needed_by} needs; {fix}")


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Messages as text, up to where the model's answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt: with the tokenizer's special tokens, but without a second BOS."""
    has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return list(tokenizer(prompt, add_special_tokens=not has_bos).input_ids)
