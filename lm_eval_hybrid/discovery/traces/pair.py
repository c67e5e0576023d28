"""The two models that discovery looks at, and what each reads of a trace.

A trace is the thinking model's own: it is in that model's tokens, after that model's prompt. The base reads the same
text after the prompt as it stands (DESIGN, section 4), token by token as decoding would have handed it over: so where
the vocabularies differ in special tokens, as those of distilled models do, or altogether, a place in the one row has
its place in the other.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.thoughts import thought
from lm_eval_hybrid.decoding import request
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.discovery.traces.sentences import Sentence, split
from lm_eval_hybrid.discovery.traces.traces import Trace
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.model import NdifModel

TOP = 8
"""Tokens of the thinking model's distribution that are kept of a place where the models disagree."""

SEEN = 256  # values of each weight that tell models apart


@dataclass(frozen=True)
class Encoded:
    """A trace as token ids of both models, prompts and end tokens included.

    Attributes:
        thinking, base: ids of each model.
        begin: where the trace begins in `thinking`; the token before it is the prompt's last.
        columns: of each place in `thinking`, from `begin` - 1 on: the last token in `base` of what was read there.
        sentences: of the trace's thought; their spans index `thinking`.
        cut: whether the trace goes on beyond what a model can read.
    """

    thinking: list[int]
    base: list[int]
    begin: int
    columns: list[int]
    sentences: tuple[Sentence, ...]
    cut: bool

    def column(self, place: int) -> int:
        """The base's place for one of the thinking model's, from the prompt's last on."""
        return self.columns[place - (self.begin - 1)]

    @property
    def compared(self) -> list[int]:
        """The base's places where the two models are compared: after the trace's last token nothing is said any more.

        Those of the thinking model are as many, from `begin` - 1 on.
        """
        return self.columns[: len(self.thinking) - self.begin]

    def base_spans(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Of each sentence its first column in the base's row, and the base tokens that are to follow from there on."""
        for sentence in self.sentences:
            begin, end = self.column(sentence.begin - 1), self.column(sentence.end - 1)
            yield begin, tuple(self.base[begin + 1 : end + 1])


@dataclass(frozen=True)
class Pair:
    """Both models, and how the thinking model is given a prompt.

    Attributes:
        prompt: as it stands (`raw`) or as a user turn of the chat template (`chat`), then a prefix.
    """

    base: LocalBackend | NdifModel
    thinking: LocalBackend | NdifModel
    prompt: PromptSpec

    def __post_init__(self) -> None:
        """Raises HybridError for tokenizers that cannot be aligned, or that do not do what discovery needs."""
        tokenizer = self.thinking.tokenizer
        if self.prompt.thinking == "chat" and not tokenizer.chat_template:
            raise HybridError(
                f"a chat prompt needs a tokenizer with a chat template; found none in {tokenizer.name_or_path}; "
                "set prompt.thinking to raw"
            )
        if not tokenizer.is_fast:
            raise HybridError(
                "discovery needs a thinking model with a fast tokenizer, which says where tokens stand in their text; "
                f"found {type(tokenizer).__name__}; convert it"
            )
        if tokenizer.eos_token_id is None or self.base.tokenizer.eos_token_id is None:
            raise HybridError("discovery needs tokenizers with an end token; found one without; set eos_token")
        _ = self.bridge

    @cached_property
    def bridge(self) -> Bridge:
        return Bridge(self.base.tokenizer, self.thinking.tokenizer)

    def thinking_text(self, prompt: str) -> str:
        """What the thinking model reads where the base reads `prompt`."""
        text = prompt
        if self.prompt.thinking == "chat":
            turn = [{"role": "user", "content": prompt}]
            text = self.thinking.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return self.prompt.prefixed(text)

    def prompts(self, prompt: str) -> request.Prompt:
        """A prompt in the tokens of each model, as decoding takes it."""
        return request.Prompt(
            prompt_ids(self.base.tokenizer, prompt),
            prompt_ids(self.thinking.tokenizer, self.thinking_text(prompt)),
        )

    def encode(self, trace: Trace) -> Encoded:
        """A trace as both models read it: as much of it as goes into the context of both.

        Of a prompt that leaves no room for a trace there is what the contexts hold, and nothing of the trace.

        Raises:
            HybridError: for a prompt that is no token to one of them.
        """
        prompts, written = self.prompts(trace.prompt), self.thinking_text(trace.prompt)
        tokenizer, begin = self.thinking.tokenizer, len(prompts.thinking_ids)
        if not begin or not prompts.base_ids:
            raise HybridError(f"a trace's prompt needs at least one token; found {trace.prompt!r}; give it text")
        answer = tokenizer(trace.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*answer.input_ids, tokenizer.eos_token_id]
        base, columns = list(prompts.base_ids), [len(prompts.base_ids) - 1]
        room = self.thinking.context_length - begin
        for token in ids[: max(0, room)]:
            crossed = self.bridge.back(token)
            if len(base) + len(crossed) > self.base.context_length:
                break
            base += crossed
            columns.append(len(base) - 1)
        kept = len(columns) - 1
        if not kept:
            # No pass may go beyond a context, not even over a prompt.
            told, begun = prompts.thinking_ids[: self.thinking.context_length], base[: self.base.context_length]
            return Encoded(list(told), begun, len(told), [len(begun) - 1], (), True)
        span = thought(trace.text, written)
        ends = [end for _, end in answer.offset_mapping]
        found = [] if span is None else split(trace.text, ends, span.begin, span.end)
        moved = tuple(Sentence(s.text, s.begin + begin, s.end + begin) for s in found if s.end <= kept)
        return Encoded([*prompts.thinking_ids, *ids[:kept]], base, begin, columns, moved, kept < len(ids))

    def identity(self) -> dict[str, str | dict[str, str]]:
        """What everything that is computed from both models depends on, as plain data."""
        return {
            "base": fingerprint(self.base),
            "thinking": fingerprint(self.thinking),
            "prompt": self.prompt.model_dump(),
        }


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt as decoding reads it: with the tokenizer's special tokens, but no second BOS."""
    begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return tokenizer(prompt, add_special_tokens=not begun).input_ids


def fingerprint(backend: LocalBackend | NdifModel) -> str:
    """sha256 (hex) of a tokenizer's vocabulary and chat template, and of the names, shapes and first values of a
    model's weights: cheap, and training changes it. A server says no more than a digest of its weights."""
    tokenizer = backend.tokenizer
    content = hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]).encode())
    if isinstance(backend, NdifModel):
        content.update(f"remote {backend.weights}".encode())
        return content.hexdigest()
    for name, weight in backend.model._module.named_parameters():
        first = weight.detach().reshape(-1)[:SEEN].float().cpu()
        content.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + first.numpy().tobytes())
    return content.hexdigest()
