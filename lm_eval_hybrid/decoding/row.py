"""One request being answered: what both models have read of it, and what is to be read next."""

from collections.abc import Sequence

from lm_eval_hybrid.decoding.answer import Answer, Fact
from lm_eval_hybrid.decoding.draws import context_digest
from lm_eval_hybrid.decoding.request import Request


class Row:
    """A request and its answer so far. Caches can be lost and rebuilt: all that decides is here.

    Attributes:
        index: of the request among those asked.
        base_ids: prompt and answer, as base ids. All but the last are read.
        thinking_ids: the same as thinking ids; the first `thinking_read` are read.
    """

    def __init__(self, index: int, request: Request, answer: Answer) -> None:
        self.index = index
        self.request = request
        self.answer = answer
        self.key = context_digest(request.prompt.base_ids)
        self.base_ids = list(request.prompt.base_ids)
        self.thinking_ids = list(request.prompt.thinking_ids)
        self.thinking_read = 0
        self.going = request.limit > 0

    @property
    def position(self) -> int:
        """Index of the next token to be generated."""
        return self.answer.length

    def take(self, fact: Fact, shown: Sequence[int], ends: bool) -> bool:
        """Add a token, which crosses as `shown`, or end with it; say whether the answer goes on."""
        self.base_ids.append(fact.token)
        self.thinking_ids += shown
        self.going = self.answer.take(fact, shown, ends)
        return self.going
