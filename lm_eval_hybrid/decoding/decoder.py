"""Hybrid decoding of many requests: as many at once as there are slots, each making room for the next when it ends.

Rows are independent: batch, neighbours and draft length change no token. A model that the policy never reads is not
run. An answer is yielded as soon as it is finished; on out-of-memory the batch is halved, and the unfinished answers go
on from where they were.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.batch import Batch, Worker
from lm_eval_hybrid.decoding.context import DecodingContext, Model
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt, Request, Row
from lm_eval_hybrid.decoding.scoring import score
from lm_eval_hybrid.decoding.steering import Steering

_log = logging.getLogger(__name__)


class HybridDecoder:
    """A base model, steered where a thinking model says so, by one policy.

    Answers are in the base model's tokens; where the policy never reads the base, in the thinking model's.

    Args:
        base: always given; run only where the policy reads it.
        thinking: may be None where the policy does not read it.
        steering: may be None where the policy does not steer.
        longest_draft: the most tokens that the base drafts before the thinking model verifies; 1: token by token;
            None: 16 for a local base, 48 for a remote one.
        overlap: whether the base drafts on while the thinking model verifies; None: if each has a device of its own.

    Raises:
        HybridError: the policy needs what is missing, or the tokenizers cannot be aligned.
    """

    def __init__(
        self,
        base: Model,
        thinking: Model | None,
        steering: Steering | None,
        policy: Policy,
        longest_draft: int | None = None,
        overlap: bool | None = None,
    ) -> None:
        self.policy = policy
        self._context = DecodingContext.of(base, thinking, steering, policy, longest_draft, overlap)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int | Sequence[int], stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Answer the prompts greedily, as one batch.

        Args:
            max_new_tokens: for all prompts, or one for each; the end-of-sequence token counts towards it.
            stop: strings that end an answer.

        Raises:
            HybridError: a prompt is empty, or leaves no room for its answer.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        requests = [Request(prompt, limit, tuple(stop)) for prompt, limit in zip(prompts, limits, strict=True)]
        answers = dict(self.stream(requests, max(1, len(requests))))
        return [answers[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request], slots: int) -> Iterator[tuple[int, Generation]]:
        """Answer requests, up to `slots` at once, started in their order.

        Yields:
            (index of a request, its answer), as they are finished.

        Raises:
            HybridError: before any is answered, a prompt is empty or leaves no room for its answer; later, a model
                produces NaN. What was yielded stays valid.
        """
        for request in requests:
            self._check(request.prompt, request.limit)
        rows = [self._context.row(index, request) for index, request in enumerate(requests)]
        yield from _finished(rows)
        waiting = deque(row for row in rows if row.running)
        rows = []
        batch: Batch | None = None
        with closing(Worker()) if self._context.overlap else nullcontext() as worker:
            while waiting or any(row.running for row in rows):
                try:
                    batch = self._filled(batch, rows, waiting, slots)
                    batch.round(worker)
                except RuntimeError as error:
                    slots = _halved(error, len(rows))
                    batch = None
                    continue
                yield from _finished(rows)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Log-likelihood of given continuations under the hybrid, as one batch.

        At each position the distribution is the base's where the gate stays shut, the selected candidate's where it
        opens, and the thinking model's where the policy emits its token.

        Args:
            continuations: token ids of the model that speaks, one list for each prompt.

        Returns:
            For each: (sum of the tokens' natural log-probabilities, whether greedy decoding would choose all of them).

        Raises:
            HybridError: a prompt is empty, is too long with its continuation, or a continuation has a token that does
                not cross to the thinking model's vocabulary.
        """
        for prompt, continuation in zip(prompts, continuations, strict=True):
            # The last token is scored, never read; so it needs no room.
            self._check(prompt, max(len(continuation) - 1, 0))
        return score(self._context, prompts, continuations)

    def _filled(self, batch: Batch | None, rows: list[Row], waiting: deque[Row], slots: int) -> Batch:
        """The batch of the next round: `rows` that are running, and as many of the waiting as there are slots for.

        `rows` is changed in place before any cache is touched, so that no row is lost on an error.
        """
        if batch is None:
            while len(rows) > slots:
                waiting.appendleft(rows.pop())
            while waiting and len(rows) < slots:
                rows.append(waiting.popleft())
            return Batch(self._context, rows)
        inserted: dict[int, Row] = {}
        for slot, row in enumerate(rows):
            if not row.running and waiting:
                inserted[slot] = rows[slot] = waiting.popleft()
        running = [slot for slot, row in enumerate(rows) if row.running]
        rows[:] = [rows[slot] for slot in running]
        batch.insert(inserted)
        if len(running) < len(batch.rows):
            batch.select(running)
        return batch

    def _check(self, prompt: Prompt, length: int) -> None:
        """Check that the models that are run can read a prompt and `length` more tokens."""
        context = self._context
        read = [(context.speaker, context.prompt_ids(prompt))]
        if context.verification is not None:
            read.append((context.verification.model, prompt.thinking_ids))
        for model, ids in read:
            if not len(ids):
                raise HybridError("a prompt is empty; it needs at least one token; give it text")
            if len(ids) + length > model.context_length:
                raise HybridError(
                    f"a prompt of {len(ids)} tokens with {length} to generate exceeds the model's context of "
                    f"{model.context_length} tokens; shorten the prompt or lower max_gen_toks"
                )


def _finished(rows: Sequence[Row]) -> Iterator[tuple[int, Generation]]:
    yield from ((row.index, row.generation()) for row in rows if not row.running)


def _halved(error: RuntimeError, rows: int) -> int:
    """Half as many rows, where that may help against `error`; else it is raised again."""
    if rows < 2 or not should_reduce_batch_size(error):
        raise error
    _log.warning("Out of memory with %d answers at once: continuing with %d", rows, rows // 2)
    clear_device_cache(garbage_collection=True)
    return rows // 2
