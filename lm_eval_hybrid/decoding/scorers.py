"""The two models, as scoring asks them (`decoding/scoring.py`): where a model is makes a difference here alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lm_eval_hybrid.decoding.chooser import Place, present
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, read_thinking
from lm_eval_hybrid.models.protocol import Sequences


@dataclass
class Text:
    """A continuation, and what has been found of it.

    Attributes:
        tokens: the speaking model's ids; crossings: of each but the last, as the thinking model reads it.
        key: `draws.context_digest` of the prompt.
        logprob, greedy: see `decoder.HybridDecoder.score`.
    """

    prompt: Prompt
    tokens: Sequence[int]
    crossings: list[Sequence[int]]
    key: bytes
    logprob: float = 0.0
    greedy: bool = True

    @property
    def context(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What both models read before it."""
        return tuple(self.prompt.base_ids), tuple(self.prompt.thinking_ids)


class Scorer(Protocol):
    """Texts in rows of one model."""

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""


class BaseScorer(Scorer, Protocol):
    """The base model."""

    def read(self, texts: Sequence[Text], start: int, size: int) -> tuple[Tensor, BaseView]:
        """What it says of the texts' tokens from `start` on, up to `size` of each: their log-probabilities, [rows, k]
        float32 on the CPU, and a view, which knows no margins where the model is on a server. What lies beyond a
        text's end means nothing."""

    def steer(
        self, texts: Sequence[Text], base: BaseView, thinking: ThinkingView | None, places: Sequence[Place]
    ) -> tuple[Tensor, Tensor]:
        """Try all candidates at some places. Of the one taken at each: log-probability of the text's own token, [n]
        float32, and the token that it says, [n] int64; both on the CPU."""


class ThinkingScorer(Scorer, Protocol):
    """The thinking model."""

    def read(self, texts: Sequence[Text], start: int, size: int, base: BaseView | None) -> ThinkingView:
        """What it says of the same tokens."""


def own_tokens(texts: Sequence[Text], places: Sequence[Place]) -> Tensor:
    """[n] int64: the texts' own tokens at some places."""
    return torch.tensor([texts[place.row].tokens[place.position] for place in places])


class LocalBaseScorer:
    """Implements `BaseScorer`, in this process."""

    def __init__(self, system: System, texts: Sequence[Text], ahead: int) -> None:
        """Have the prompts read, but for their last tokens. ahead: tokens that are read at once at most."""
        self._system = system
        contexts = list(dict.fromkeys(text.context for text in texts))
        self._sequences = system.open_base(present(system.base), len(contexts), ahead)
        _insert(self._sequences, contexts, texts, 0)

    def select(self, rows: Sequence[int]) -> None:
        self._sequences.select(rows)

    def read(self, texts: Sequence[Text], start: int, size: int) -> tuple[Tensor, BaseView]:
        own = [text.tokens[start : start + size] for text in texts]
        read = [[*text.prompt.base_ids[-1:], *text.tokens[:-1]][start : start + size] for text in texts]
        counts = [len(tokens) for tokens in own]
        reading = self._sequences.read(_padded(read), counts)
        tokens = _padded(own).to(reading.logits.device)
        logprobs = torch.stack([_logprob(row, ids) for row, ids in zip(reading.logits, tokens, strict=True)])
        return logprobs.cpu(), BaseView.of(reading.logits, reading.residual, self._system.bridge)

    def steer(
        self, texts: Sequence[Text], base: BaseView, thinking: ThinkingView | None, places: Sequence[Place]
    ) -> tuple[Tensor, Tensor]:
        candidates = self._system.chooser.steer(self._sequences, base, thinking, places)
        logits = present(candidates.logits)
        return _logprob(logits, own_tokens(texts, places).to(logits.device)).cpu(), candidates.token.cpu()


class LocalThinkingScorer:
    """Implements `ThinkingScorer`, in this process."""

    def __init__(self, system: System, texts: Sequence[Text], ahead: int) -> None:
        """See `LocalBaseScorer`."""
        self._system = system
        contexts = list(dict.fromkeys(text.context for text in texts))
        self._sequences = system.open_thinking(present(system.thinking), len(contexts), ahead)
        _insert(self._sequences, contexts, texts, 1)

    def select(self, rows: Sequence[int]) -> None:
        self._sequences.select(rows)

    def read(self, texts: Sequence[Text], start: int, size: int, base: BaseView | None) -> ThinkingView:
        read = [[text.prompt.thinking_ids[-1:], *text.crossings][start : start + size] for text in texts]
        return read_thinking(self._sequences, read, present(self._system.bridge))[0]


def _insert(
    sequences: Sequences, contexts: Sequence[tuple[tuple[int, ...], ...]], texts: Sequence[Text], which: int
) -> None:
    """Read the prompts. What several texts follow is read once."""
    sequences.insert(range(len(contexts)), [context[which][:-1] for context in contexts])
    rows = {context: row for row, context in enumerate(contexts)}
    sequences.select([rows[text.context] for text in texts])


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def _logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, vocab] of any dtype, [n] int64 -> [n] float32."""
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
