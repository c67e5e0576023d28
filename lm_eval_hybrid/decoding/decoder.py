"""Hybrid decoding of a batch, in step: one forward pass a model a token, and where the gate opens one more a distinct
window.

Rows are independent: padding, batch and finished neighbours change no token. A model that the policy never reads
is not run. Greedy only.
"""

from collections.abc import Sequence
from typing import cast

from lm_eval_hybrid.backends.protocol import Backend
from lm_eval_hybrid.decoding.answer import Answer
from lm_eval_hybrid.decoding.batch import Batch, Prompt
from lm_eval_hybrid.decoding.bridge import Bridge
from lm_eval_hybrid.decoding.choosing import Chooser
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.decoding.trace import Generation
from lm_eval_hybrid.errors import HybridError


class HybridDecoder:
    """A base model, steered where and how a policy says by what a thinking model sees.

    Args:
        base: always given, as answers are in its tokens; run only where the policy reads it.
        thinking: may be None where the policy does not read it.
        steering: may be None where the policy does not steer.

    Raises:
        HybridError: where the policy needs what is missing, or the tokenizers cannot be aligned.
    """

    def __init__(self, base: Backend, thinking: Backend | None, steering: Steering | None, policy: Policy) -> None:
        if policy.reads_thinking and thinking is None:
            raise HybridError("this policy needs a thinking model; found none; give thinking= or use arm=base")
        if policy.steers and steering is None:
            raise HybridError("this policy needs steering vectors; found none; give behaviors= or use arm=base")
        self.policy = policy
        self._base = base
        self._thinking = thinking if policy.reads_thinking else None
        self._steering = steering
        self._bridge = Bridge(base.tokenizer, self._thinking.tokenizer) if self._thinking is not None else None
        self._chooser = Chooser(policy, steering, self._bridge, base.device)

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[str] | Sequence[Sequence[str]] = (),
    ) -> list[Generation]:
        """Answer the prompts, as one batch.

        Args:
            max_new_tokens: for all prompts, or one for each; the end-of-sequence token counts towards it.
            stop: strings that end an answer: for all prompts, or a list for each.

        Raises:
            HybridError: for an empty prompt, or one that leaves no room for its answer.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        shared = all(isinstance(s, str) for s in stop)
        stops = [stop] * len(prompts) if shared else list(stop)
        keys = self._steering.keys if self._steering is not None else ()
        # The thinking model's tokenizer knows what a distilled model's special tokens mean: `</think>`.
        tokenizer = (self._thinking or self._base).tokenizer
        end = self._base.tokenizer.eos_token_id
        answers = [
            Answer(tokenizer, keys, cast(Sequence[str], strings), limit)
            for strings, limit in zip(stops, limits, strict=True)
        ]
        rows = [i for i, limit in enumerate(limits) if limit > 0]
        batch = self._open(prompts, limits, rows)
        while rows:
            choice = batch.choose()
            shown = choice.token if self._bridge is None else self._bridge.to_thinking(choice.token)
            slots = []
            for slot, (token, fact) in enumerate(zip(shown.tolist(), choice.facts(), strict=True)):
                if answers[rows[slot]].take(fact, token, ends=fact.token == end):
                    slots.append(slot)
            rows = [rows[slot] for slot in slots]
            batch.extend(choice.token, slots)
        return [answer.generation() for answer in answers]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Log-likelihood of given continuations under the hybrid, as one batch (DESIGN, section 2).

        At each position the distribution is the base's where the gate stays shut, the selected steered
        candidate's where it opens, and the thinking model's where the policy emits that one's token.

        Args:
            continuations: base token ids, one list for each prompt.

        Returns:
            For each: (sum of the tokens' natural log-probabilities, whether all are what would be chosen).

        Raises:
            HybridError: for an empty prompt, one too long with its continuation, or a continuation with a
                token that the thinking model does not know.
        """
        lengths = [len(c) for c in continuations]
        totals, greedy = [0.0] * len(prompts), [True] * len(prompts)
        rows = [i for i, length in enumerate(lengths) if length > 0]
        # The last token is scored, never fed; so it needs no room.
        batch = self._open(prompts, [max(length - 1, 0) for length in lengths], rows)
        while rows:
            choice = batch.choose()
            forced = choice.token.new_tensor([continuations[i][batch.position] for i in rows])
            logprobs = self._chooser.logprobs(choice, batch.base, batch.thinking, forced).tolist()
            for row, logprob, same in zip(rows, logprobs, (choice.token == forced).tolist(), strict=True):
                totals[row] += logprob
                greedy[row] &= same
            slots = [slot for slot, row in enumerate(rows) if batch.position + 1 < lengths[row]]
            rows = [rows[slot] for slot in slots]
            batch.extend(forced, slots)
        return list(zip(totals, greedy, strict=True))

    def _open(self, prompts: Sequence[Prompt], lengths: Sequence[int], rows: Sequence[int]) -> Batch:
        """A batch of the prompts `rows`, each with room for its `lengths` of new tokens."""
        base = self._base if self.policy.reads_base else None
        for prompt, length in zip(prompts, lengths, strict=True):
            for backend, ids in ((base, prompt.base_ids), (self._thinking, prompt.thinking_ids)):
                if backend is not None:
                    _check(ids, length, backend.context_length)
        return Batch([prompts[i] for i in rows], base, self._thinking, self._steering, self._bridge, self._chooser)


def _check(ids: Sequence[int], length: int, context: int) -> None:
    if not len(ids):
        raise HybridError("a prompt needs at least one token; found an empty prompt; give it text")
    if len(ids) + length > context:
        raise HybridError(
            f"prompt and answer must fit the model's context of {context} tokens; found {len(ids)} of prompt "
            f"and {length} to generate; shorten the prompt or lower max_gen_toks"
        )
