"""The two models that discovery compares, and a trace in the tokens of both.

The thinking model wrote the trace: in its own tokens, after its own prompt. The base model reads the same text after
the plain prompt, token by token as decoding would align it (`decoding/tokens`). So each position in the thinking
model's row has a column in the base's row, even if the vocabularies differ in special tokens, as those of distilled
models do, or altogether.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.thoughts import thought
from lm_eval_hybrid.decoding.request import (
    Prompt,
    apply_chat_template,
    prompt_ids,
    require_chat_template,
    thinking_text,
)
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.discovery.traces.trace import SentenceSpan, Trace, split_sentences
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import NdifModel

Model = LocalBackend | NdifModel

_SAMPLED = 256  # values of each weight that identify a model


@dataclass(frozen=True)
class EncodedTrace:
    """A trace as token ids of both models, prompts and end tokens included.

    Attributes:
        begin: index in `thinking_ids` of the trace's first token; the token before it is the prompt's last.
        base_columns: for each index in `thinking_ids` from `begin` - 1 on, the index in `base_ids` of the last token
            of the same text.
        sentences: sentences of the trace's thought, as spans of `thinking_ids`.
        truncated: whether the trace exceeds the context of a model.
    """

    thinking_ids: list[int]
    base_ids: list[int]
    begin: int
    base_columns: list[int]
    sentences: tuple[SentenceSpan, ...]
    truncated: bool

    def base_column(self, position: int) -> int:
        """The index in `base_ids` for an index in `thinking_ids`, from the prompt's last token on."""
        return self.base_columns[position - (self.begin - 1)]

    @property
    def compared_columns(self) -> list[int]:
        """Indices in `base_ids` at which the next tokens of both models are compared: all but the trace's last token.

        The indices in `thinking_ids` are as many, from `begin` - 1 on.
        """
        return self.base_columns[: len(self.thinking_ids) - self.begin]

    def base_spans(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """For each sentence, the base column before it, and the sentence as base tokens."""
        for sentence in self.sentences:
            begin, end = self.base_column(sentence.begin - 1), self.base_column(sentence.end - 1)
            yield begin, tuple(self.base_ids[begin + 1 : end + 1])


@dataclass(frozen=True)
class ModelPair:
    """A base and a thinking model, and the form in which the thinking model gets a prompt.

    Raises:
        HybridError: the tokenizers cannot be aligned, or lack something that discovery needs.
    """

    base: Model
    thinking: Model
    prompt: PromptSpec

    def __post_init__(self) -> None:
        tokenizer = self.thinking.tokenizer
        if self.prompt.thinking == "chat":
            require_chat_template(tokenizer, "a chat prompt", "set prompt.thinking to raw")
        if not tokenizer.is_fast:
            raise HybridError(
                f"the thinking model's {type(tokenizer).__name__} is no fast tokenizer, so it cannot tell where tokens "
                "end in their text; convert it to a fast one"
            )
        if tokenizer.eos_token_id is None or self.base.tokenizer.eos_token_id is None:
            raise HybridError("a tokenizer has no end token, which discovery needs from both; set eos_token")
        _ = self.bridge

    @cached_property
    def bridge(self) -> Bridge:
        return Bridge(self.base.tokenizer, self.thinking.tokenizer)

    def thinking_text(self, prompt: str) -> str:
        """The thinking model's prompt where the base model reads `prompt`."""
        return thinking_text(self.prompt, prompt, partial(apply_chat_template, self.thinking.tokenizer))

    def prompts(self, prompt: str) -> Prompt:
        """A prompt in the tokens of each model."""
        return Prompt(
            prompt_ids(self.base.tokenizer, prompt), prompt_ids(self.thinking.tokenizer, self.thinking_text(prompt))
        )

    def encode(self, trace: Trace) -> EncodedTrace:
        """A trace in the tokens of both models, cut to the context of both.

        If the prompt alone fills a context, the result is the prompt, cut to the contexts, without any of the trace.

        Raises:
            HybridError: the prompt has no tokens.
        """
        prompts = self.prompts(trace.prompt)
        tokenizer, begin = self.thinking.tokenizer, len(prompts.thinking_ids)
        if not begin or not prompts.base_ids:
            raise HybridError(f"the prompt {trace.prompt!r} of a trace has no tokens; give it text")
        answer = tokenizer(trace.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*answer.input_ids, tokenizer.eos_token_id]
        base, columns = list(prompts.base_ids), [len(prompts.base_ids) - 1]
        room = self.thinking.context_length - begin
        for token in ids[: max(0, room)]:
            aligned = self.bridge.back(token)
            if len(base) + len(aligned) > self.base.context_length:
                break
            base += aligned
            columns.append(len(base) - 1)
        kept = len(columns) - 1
        if not kept:
            # No pass may exceed a context, not even over a prompt.
            cut, cut_base = prompts.thinking_ids[: self.thinking.context_length], base[: self.base.context_length]
            return EncodedTrace(list(cut), cut_base, len(cut), [len(cut_base) - 1], (), True)
        span = thought(trace.text, self.thinking_text(trace.prompt))
        ends = [end for _, end in answer.offset_mapping]
        found = [] if span is None else split_sentences(trace.text, ends, span.begin, span.end)
        shifted = tuple(SentenceSpan(s.text, s.begin + begin, s.end + begin) for s in found if s.end <= kept)
        return EncodedTrace([*prompts.thinking_ids, *ids[:kept]], base, begin, columns, shifted, kept < len(ids))

    def identity(self) -> dict[str, str | dict[str, str]]:
        """What identifies both models and the prompt's form, as plain data."""
        return {
            "base": fingerprint(self.base),
            "thinking": fingerprint(self.thinking),
            "prompt": self.prompt.model_dump(),
        }


def fingerprint(model: Model) -> str:
    """sha256 (hex) of a tokenizer's vocabulary and chat template, and of names, shapes and first values of the weights.

    Reading so few values is cheap, and training changes them. A server gives no more than a digest of its weights.
    """
    tokenizer = model.tokenizer
    content = hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]).encode())
    if model.is_remote:
        content.update(f"remote {model.weights}".encode())
        return content.hexdigest()
    for name, weight in model.model._module.named_parameters():
        first = weight.detach().reshape(-1)[:_SAMPLED].float().cpu()
        content.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + first.numpy().tobytes())
    return content.hexdigest()
