"""What the naive loop of the tests costs: run whole where that is short, elsewhere sampled.

Its step costs what the number of tokens read makes it cost, and whether the gate opens: nothing else about the text
matters. So a long run is priced by a few steps, with the gate shut and open, at some lengths of the engine's own text,
joined by straight lines, and summed over that text's positions.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from benchmarks.clock import take_turns
from benchmarks.pairs import Pair
from lm_eval_hybrid.decoding.steering import Steering
from tests.oracle.naive import NaivePolicy, NaiveSteering, naive_generate

_ROUNDS = 3
_PATIENCE = 10.0  # seconds, after which no other round is begun


class NaiveLoop:
    """The naive loop over a pair, window 1, gate `disagreement`. It leaves nnsight's mark on the models."""

    def __init__(self, pair: Pair, coefficients: Sequence[float]) -> None:
        self._pair = pair
        self._device = pair.base.device
        self._steering = _steering(pair.steering, self._device)
        self._coefficients = tuple(coefficients)

    def generate(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The whole run."""
        return self._run(prompt, tokens, gate="disagreement")

    def step(self, text: Sequence[int], opens: bool) -> None:
        """One step after `text`, with the gate open or shut."""
        self._run(text, 1, gate="random", gate_rate=float(opens))

    def _run(self, prompt: Sequence[int], tokens: int, **gate: str | float) -> list[int]:
        policy = NaivePolicy(coefficients=self._coefficients, windows=(1,), **gate)
        with self._device:  # the loop makes its tensors where they are made by default
            models = self._pair.base, self._pair.thinking
            return naive_generate(*models, None, self._steering, policy, prompt, prompt, tokens)["tokens"]


@dataclass(frozen=True)
class NaiveCost:
    """Seconds of a step, by tokens read, at some lengths in ascending order."""

    lengths: list[int]
    shut: list[float]
    opened: list[float]

    @classmethod
    def sampled(cls, loop: NaiveLoop, text: Sequence[int], lengths: Sequence[int]) -> "NaiveCost":
        """Measured after so many tokens of `text`: two lengths or more, ascending."""
        work = {(n, opens): partial(loop.step, text[:n], opens) for n in lengths for opens in (False, True)}
        loop.step(text[: lengths[0]], True)  # what happens once is not what is counted
        taken, _ = take_turns(work, _ROUNDS, _PATIENCE)
        medians = {key: median(spent) for key, spent in taken.items()}
        return cls(list(lengths), *([medians[n, opens] for n in lengths] for opens in (False, True)))

    def run(self, prompt: int, opened: Sequence[bool]) -> float:
        """Seconds of a run after a prompt of this many tokens: one step for each of `opened`."""
        return sum(self._step(prompt + i, opens) for i, opens in enumerate(opened))

    def _step(self, length: int, opens: bool) -> float:
        costs = self.opened if opens else self.shut
        i = min(max(bisect_right(self.lengths, length), 1), len(self.lengths) - 1)
        share = (length - self.lengths[i - 1]) / (self.lengths[i] - self.lengths[i - 1])
        return costs[i - 1] + share * (costs[i] - costs[i - 1])


def _steering(steering: Steering, device: torch.device) -> NaiveSteering:
    encoder = steering.encoder
    return NaiveSteering(
        layer=steering.layer,
        bias=steering.bias.to(device),
        vectors=steering.vectors.to(device),
        sae_layer=steering.sae_layer,
        mean=encoder.mean.to(device),
        b_dec=encoder.decoder_bias.to(device),
        W_e=encoder.weight.to(device),
        b_e=encoder.bias.to(device),
        keys=steering.keys,
    )
