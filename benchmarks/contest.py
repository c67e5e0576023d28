"""One pair decoded in every way, over batches and lengths, and what that says, as ratios."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.clock import Ratio, take_turns
from benchmarks.lockstep import Lockstep
from benchmarks.naive import NaiveCost, NaiveLoop
from benchmarks.pairs import Pair
from benchmarks.plain import generate
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.models.local import LocalBackend

COEFFICIENTS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass
class Contest:
    """What was measured of one pair at one batch size.

    Attributes:
        seconds: of each way of decoding (`ours`, `lockstep`, `base`, `thinking`, `naive`) at each length, by round.
        steered: by length, share of our tokens at which the gate opened.
        same: by way and length, answers equal to ours, of those compared.
        naive: by length, seconds of the naive loop as sampled.
        memory: by length, peak over weights and caches.
    """

    pair: str
    batch: int
    lengths: list[int]
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    steered: dict[int, float] = field(default_factory=dict)
    same: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    naive: dict[int, float] = field(default_factory=dict)
    memory: dict[int, float] = field(default_factory=dict)

    def against_ours(self, way: str, tokens: int) -> Ratio:
        """How many times our time."""
        return Ratio.of(self.seconds[way, tokens], self.seconds["ours", tokens])

    def naive_against_ours(self, tokens: int) -> Ratio:
        """The same for the naive loop as sampled, which is no part of the rounds."""
        ours = self.seconds["ours", tokens]
        return Ratio.of([self.naive[tokens]] * len(ours), ours)

    def against_models(self, tokens: int) -> Ratio:
        """Our time over that of the base's own `generate` and a quarter of the thinking model's."""
        models = zip(self.seconds["base", tokens], self.seconds["thinking", tokens], strict=True)
        return Ratio.of(self.seconds["ours", tokens], [base + thinking / 4 for base, thinking in models])

    def growth(self, tokens: int) -> Ratio:
        """Our time for a token at this length over that at the shortest."""
        shortest = self.lengths[0]
        per_token = [[s / n for s in self.seconds["ours", n]] for n in (tokens, shortest)]
        return Ratio.of(*per_token)


class Arena:
    """Everything that decodes one pair.

    What nnsight reads are copies: the models in plain PyTorch's hands are ones that it never touched.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.traced = replace(pair, base=copy.deepcopy(pair.base), thinking=copy.deepcopy(pair.thinking))
        self.loop = NaiveLoop(self.traced, COEFFICIENTS)
        self._lockstep = Lockstep(pair.base, pair.thinking, pair.steering, COEFFICIENTS)

    def contest(self, batch: int, lengths: Sequence[int], rounds: int, budget: float, whole: Sequence[int]) -> Contest:
        """Run all ways in turns.

        Args:
            whole: lengths at which the naive loop is run whole, one prompt after the other.
            budget: seconds after which no other round is begun.
        """
        prompts = self.pair.prompts[:batch]
        # One decoder throughout, as in an evaluation: what it learns of the pair's pace it learns once.
        ours = partial(decode, decoder_of(self.traced), prompts)
        ways: dict[str, Callable[[int], Any]] = {
            "lockstep": partial(self._lockstep.generate, prompts),
            "ours": ours,
            "base": partial(generate, self.pair.base, prompts),
            "thinking": partial(generate, self.pair.thinking, prompts),
        }
        for way in ways.values():
            way(2)  # what happens once is not what is compared
        work = {(name, n): partial(way, n) for n in lengths for name, way in ways.items()}
        work |= {("naive", n): partial(self._naive, prompts, n) for n in whole}
        seconds, results = take_turns(work, rounds, budget)
        found = Contest(self.pair.name, batch, list(lengths), seconds)
        for n in lengths:
            answers: list[Generation] = results["ours", n]
            found.steered[n] = sum(answer.steered_fraction for answer in answers) / batch
            for name in ("lockstep", "naive"):
                if (name, n) in results:
                    equal = [list(a.tokens) == b for a, b in zip(answers, results[name, n], strict=True)]
                    found.same[name, n] = sum(equal), batch
        self._answers = results["ours", max(lengths)]
        return found

    def sample(self, lengths: Sequence[int]) -> NaiveCost:
        """The naive loop's cost, along the first answer of the last contest."""
        start = len(self.pair.prompts[0])
        return NaiveCost.sampled(self.loop, self.text(max(lengths)), [start, *(start + n for n in lengths)])

    def text(self, tokens: int) -> list[int]:
        """The first prompt, and the beginning of what was written after it in the last contest."""
        return [*self.pair.prompts[0], *self._answers[0].tokens[:tokens]]

    def price(self, found: Contest, cost: NaiveCost) -> None:
        """Put the naive loop's sampled times into the contest that was run last."""
        for n in found.lengths:
            found.naive[n] = sum(
                cost.run(len(prompt), [record.steered for record in answer.records[:n]])
                for prompt, answer in zip(self.pair.prompts, self._answers, strict=False)
            )

    def _naive(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        return [self.loop.generate(prompt, tokens) for prompt in prompts]


def decoder_of(pair: Pair) -> HybridDecoder:
    """Our decoder of a pair."""
    backends = (LocalBackend(model, pair.tokenizer) for model in (pair.base, pair.thinking))
    return HybridDecoder(*backends, pair.steering, Policy(COEFFICIENTS, (1,)))


def decode(decoder: HybridDecoder, prompts: Sequence[Sequence[int]], tokens: int) -> list[Generation]:
    """Our answers, as one batch."""
    return decoder.generate([Prompt(prompt, prompt) for prompt in prompts], tokens)
