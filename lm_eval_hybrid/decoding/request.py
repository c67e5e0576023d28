"""Prompts and requests, the rows that answer them, and the draft of a row in one round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.records import Emission, Finish, Generation, TokenDecision, TokenRecord
from lm_eval_hybrid.decoding.sampling import Sampling, TokenDraw, prompt_digest
from lm_eval_hybrid.decoding.tokens.transcript import Transcript


@dataclass(frozen=True)
class Prompt:
    """One prompt, as token ids of each model's own tokenizer."""

    base_ids: Sequence[int]
    thinking_ids: Sequence[int]


@dataclass(frozen=True)
class Request:
    """A prompt to answer, and how.

    Attributes:
        limit: the most tokens of the answer, the end-of-sequence token included.
        stop: strings that end the answer.
        sampling: how tokens are drawn; None: greedily.
    """

    prompt: Prompt
    limit: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None

    @property
    def tokens(self) -> int:
        """The most tokens that a row of this request has, prompt included (where both models tokenize alike)."""
        return max(len(self.prompt.base_ids), len(self.prompt.thinking_ids)) + self.limit


class Row:
    """A request and its answer so far. Caches can be lost: all that decides the next token is here.

    Args:
        prompt_ids: the prompt in the ids of the model that speaks.
        tokenizer: decodes the answer, from the ids that tokens cross as.
        behaviors: the behavior of each category.

    Attributes:
        index: of the request in its stream.
        key: digest of the prompt, which keys the random draws.
        ids: prompt and answer in the ids of the model that speaks; all but the last are in its KV cache.
        thinking_ids: the same in the ids of the thinking model that verifies; it has read the first `thinking_read`.
        position: index of the next token to be generated.
        running: whether more tokens may follow.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        prompt_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        behaviors: Sequence[str],
    ) -> None:
        self.index = index
        self.request = request
        self.key = prompt_digest(request.prompt.base_ids)
        self.ids = list(prompt_ids)
        self.thinking_ids = list(request.prompt.thinking_ids)
        self.thinking_read = len(self.thinking_ids) - 1
        self.position = 0
        self.running = request.limit > 0
        self._behaviors = behaviors
        self._transcript = Transcript(tokenizer, request.stop)
        self._decisions: list[TokenDecision] = []
        self._finish: Finish = "length"

    @property
    def room(self) -> int:
        """How many more tokens are allowed."""
        return self.request.limit - self.position

    def draw(self, position: int) -> TokenDraw | None:
        """How the generated token at `position` is drawn; None: greedily."""
        return None if self.request.sampling is None else self.request.sampling.draw(position, self.key)

    def extend(self, tokens: Sequence[int], crossed: Sequence[Sequence[int]]) -> None:
        """Add tokens, each with the ids that it crosses as."""
        self.ids += tokens
        for ids in crossed:
            self.thinking_ids += ids
        self.position += len(tokens)

    def append(self, decision: TokenDecision, crossed: Sequence[int], ends: bool) -> None:
        """Add a decided token to the answer, or end the answer with it if it is the end of sequence."""
        self.extend([decision.token], [crossed])
        if ends:
            self._finish = "eos"
            self.running = False
            return
        self._decisions.append(decision)
        if self._transcript.push(crossed):
            self._finish = "stop"
            self.running = False
        elif not self.room:
            self.running = False

    def generation(self) -> Generation:
        """The finished answer."""
        self._transcript.close()
        pieces = self._transcript.kept()
        records = [
            TokenRecord(
                position=position,
                text=piece,
                behavior=None if decision.category is None else self._behaviors[decision.category],
                **decision._asdict(),
            )
            # Decisions beyond the pieces belong to the stop string.
            for position, (decision, piece) in enumerate(zip(self._decisions, pieces, strict=False))
        ]
        return Generation("".join(pieces), tuple(records), self._finish)


@dataclass
class Draft:
    """One row in one round: the tokens that were drafted, or the text that is scored.

    Attributes:
        tokens: one or more, in the ids of the model that speaks.
        crossed: the ids that each crosses as.
        length: how many of the tokens the answer has room for.
        opened: the first step (index in `tokens`) at which the gate opens; None: all tokens are accepted.
        emission: what is emitted there instead.
    """

    row: Row
    tokens: list[int]
    crossed: list[Sequence[int]]
    length: int
    opened: int | None = None
    emission: Emission | None = None

    @property
    def accepted(self) -> list[int]:
        """The tokens before the gate opens."""
        return self.tokens[: self.opened]

    @property
    def emitted(self) -> list[int]:
        """The tokens that the round adds to the row."""
        return self.accepted if self.emission is None else [*self.accepted, self.emission.token]

    @property
    def unread(self) -> list[Sequence[int]]:
        """The thinking ids to be read to verify each token, one list a token."""
        return [self.row.thinking_ids[self.row.thinking_read :], *self.crossed[:-1]]

    @property
    def ends(self) -> list[int]:
        """How many unread thinking ids precede each token."""
        return list(accumulate(map(len, self.unread)))


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
