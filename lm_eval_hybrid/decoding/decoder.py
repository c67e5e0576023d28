"""Hybrid decoding of many requests: as many at once as asked for, each making room for the next when it ends.

Rows are independent: batch, neighbours and draft length change no token. A model that the policy never reads is not
run. An answer is handed out as soon as it is finished; where memory runs out, the unfinished go on in smaller batches,
from where they were.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from typing import cast

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.answer import Answer
from lm_eval_hybrid.decoding.aside import Aside
from lm_eval_hybrid.decoding.batch import Batch
from lm_eval_hybrid.decoding.chooser import Chooser
from lm_eval_hybrid.decoding.draft_length import LONGEST, LONGEST_REMOTE, Pace
from lm_eval_hybrid.decoding.local import LocalBase, LocalThinking
from lm_eval_hybrid.decoding.ndif.drafting import RemoteBase, RemoteThinking
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.row import Row
from lm_eval_hybrid.decoding.scoring import score
from lm_eval_hybrid.decoding.sides import BaseSide, ThinkingSide
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.models.protocol import Backend

_log = logging.getLogger(__name__)


class HybridDecoder:
    """A base model, steered where and how a policy says by what a thinking model sees.

    Answers are in the base's tokens; where the policy never reads the base, in the thinking model's.

    Args:
        base: always given; run only where the policy reads it.
        thinking: may be None where the policy does not read it.
        steering: may be None where the policy does not steer.
        longest_draft: tokens that the base drafts at most before the thinking model reads; 1: token by token;
            None: as many as make sense where the base is.
        meanwhile: whether the base drafts on while the thinking model reads; None: where each has a device of its own.

    Raises:
        HybridError: where the policy needs what is missing, or the tokenizers cannot be aligned.
    """

    def __init__(
        self,
        base: Backend | NdifModel,
        thinking: Backend | NdifModel | None,
        steering: Steering | None,
        policy: Policy,
        longest_draft: int | None = None,
        meanwhile: bool | None = None,
    ) -> None:
        if policy.reads_thinking and thinking is None:
            raise HybridError("this policy needs a thinking model; found none; give thinking= or use arm=base")
        if policy.steers and steering is None:
            raise HybridError("this policy needs steering vectors; found none; give behaviors= or use arm=base")
        self.policy = policy
        self._reader = thinking if policy.reads_thinking else None
        self._speaker = base if policy.reads_base or self._reader is None else self._reader
        bridge = None if self._reader is None else Bridge(self._speaker.tokenizer, self._reader.tokenizer)
        read = base if policy.reads_base else None
        self._keys = steering.keys if steering is not None else ()
        self._system = System(
            base=read,
            thinking=self._reader,
            steering=steering,
            bridge=bridge,
            chooser=Chooser(policy, steering, bridge, base.device),
            pace=Pace(self._reader.parameters / base.parameters if self._reader is not None else 0.0),
            longest=longest_draft or (LONGEST_REMOTE if isinstance(base, NdifModel) else LONGEST),
            meanwhile=_apart(read, self._reader) if meanwhile is None else meanwhile,
            end=self._speaker.tokenizer.eos_token_id,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[str] | Sequence[Sequence[str]] = (),
    ) -> list[Generation]:
        """Answer the prompts greedily, as one batch.

        Args:
            max_new_tokens: for all prompts, or one for each; the end-of-sequence token counts towards it.
            stop: strings that end an answer: for all prompts, or a list for each.

        Raises:
            HybridError: for an empty prompt, or one that leaves no room for its answer.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        shared = all(isinstance(s, str) for s in stop)
        stops = [stop] * len(prompts) if shared else list(stop)
        requests = [
            Request(prompt, limit, tuple(cast(Sequence[str], strings)))
            for prompt, limit, strings in zip(prompts, limits, stops, strict=True)
        ]
        answers = dict(self.stream(requests, max(1, len(requests))))
        return [answers[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request], slots: int) -> Iterator[tuple[int, Generation]]:
        """Answer requests, up to `slots` at once, begun in their order.

        Yields:
            (index of a request, its answer), as they are finished.

        Raises:
            HybridError: before any is answered, for an empty prompt, or one that leaves no room for its answer; later
                for what a model should not say. What was yielded stands.
        """
        for request in requests:
            self._check(request.prompt, request.limit)
        rows = [self._row(index, request) for index, request in enumerate(requests)]
        yield from _finished(rows)
        waiting = deque(row for row in rows if row.going)
        rows, batch = [], None
        with closing(Aside()) if self._system.meanwhile else nullcontext() as aside:
            while waiting or any(row.going for row in rows):
                try:
                    batch = self._filled(batch, rows, waiting, slots)
                    batch.round(aside)
                except RuntimeError as error:
                    slots = _halved(error, len(rows))
                    batch = None
                    continue
                yield from _finished(rows)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Log-likelihood of given continuations under the hybrid, as one batch (DESIGN, section 2).

        At each position the distribution is the base's where the gate stays shut, the selected steered
        candidate's where it opens, and the thinking model's where the policy emits that one's token.

        Args:
            continuations: token ids of the model that speaks, one list for each prompt.

        Returns:
            For each: (sum of the tokens' natural log-probabilities, whether all are what would be chosen).

        Raises:
            HybridError: for an empty prompt, one too long with its continuation, or a continuation with a
                token that the thinking model cannot read.
        """
        for prompt, continuation in zip(prompts, continuations, strict=True):
            # The last token is scored, never read; so it needs no room.
            self._check(prompt, max(len(continuation) - 1, 0))
        return score(self._system, prompts, continuations)

    def _filled(self, batch: Batch | None, rows: list[Row], waiting: deque[Row], slots: int) -> Batch:
        """The batch that goes on, with `rows` in it: those still going, and as many of the waiting as have room.

        `rows` is changed in place and first, so that whatever happens to the caches no row is lost.
        """
        if batch is None:
            while len(rows) > slots:
                waiting.appendleft(rows.pop())
            while waiting and len(rows) < slots:
                rows.append(waiting.popleft())
            return Batch(self._system, _sides(self._system, len(rows)), rows)
        newcomers: dict[int, Row] = {}
        for slot, row in enumerate(rows):
            if not row.going and waiting:
                newcomers[slot] = rows[slot] = waiting.popleft()
        going = [slot for slot, row in enumerate(rows) if row.going]
        rows[:] = [rows[slot] for slot in going]
        batch.insert(newcomers)
        if len(going) < len(batch.rows):
            batch.select(going)
        return batch

    def _row(self, index: int, request: Request) -> Row:
        # The thinking model's tokenizer knows what a distilled model's special tokens mean: `</think>`.
        tokenizer = (self._reader or self._speaker).tokenizer
        return Row(index, request, Answer(tokenizer, self._keys, request.stop, request.limit))

    def _check(self, prompt: Prompt, length: int) -> None:
        """Check that the models that are read can read a prompt and `length` more tokens."""
        for backend, ids in ((self._system.base, prompt.base_ids), (self._reader, prompt.thinking_ids)):
            if backend is None:
                continue
            if not len(ids):
                raise HybridError("a prompt needs at least one token; found an empty prompt; give it text")
            if len(ids) + length > backend.context_length:
                raise HybridError(
                    f"prompt and answer must fit the model's context of {backend.context_length} tokens; found "
                    f"{len(ids)} of prompt and {length} to generate; shorten the prompt or lower max_gen_toks"
                )


def _apart(base: Backend | NdifModel | None, thinking: Backend | NdifModel | None) -> bool:
    """Whether the base can draft here while the thinking model reads elsewhere."""
    if base is None or thinking is None or isinstance(base, NdifModel):
        return False
    return isinstance(thinking, NdifModel) or base.device != thinking.device


def _sides(system: System, rows: int) -> tuple[BaseSide | None, ThinkingSide | None]:
    """Room for so many rows in both models, wherever these are."""
    base: BaseSide | None = None
    thinking: ThinkingSide | None = None
    if isinstance(system.base, NdifModel):
        base = RemoteBase(system, system.base)
    elif system.base is not None:
        base = LocalBase(system, system.open_base(system.base, rows, system.longest), rows)
    if isinstance(system.thinking, NdifModel):
        thinking = RemoteThinking(system, system.thinking)
    elif system.thinking is not None:
        thinking = LocalThinking(system, system.open_thinking(system.thinking, rows, system.longest))
    return base, thinking


def _finished(rows: Sequence[Row]) -> Iterator[tuple[int, Generation]]:
    yield from ((row.index, row.answer.generation()) for row in rows if not row.going)


def _halved(error: RuntimeError, rows: int) -> int:
    """Half as many rows, where that may help against `error`; else the error goes on."""
    if rows < 2 or not should_reduce_batch_size(error):
        raise error
    _log.warning("Out of memory with %d answers at once: going on with %d", rows, rows // 2)
    clear_device_cache(garbage_collection=True)
    return rows // 2
