"""What follows from a decided position: its greedy token or a sampled one, the record, log-likelihoods.

What the definition leaves open is settled here as follows:
- top_p looks at the probabilities of what top_k has left, renormalised;
- top_p of 1 keeps everything: rounded sums would lose tokens of next to no probability;
- where rounding leaves the last sum at or below the draw, the last token of any probability is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.oracle.crossing import OneVocabulary


@dataclass(frozen=True)
class NaiveSampling:
    """How tokens are sampled: temperature above 0, top_k (0 = off), top_p (1 = off), and which draw it is."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeat: int = 0

    @property
    def stream(self) -> str:
        """The name of the stream of draws; each repeat has its own."""
        return f"sample-{self.repeat}" if self.repeat > 0 else "sample"


@dataclass(frozen=True)
class Step:
    """What is decided at a position, whichever token is then taken there.

    Fields: token, the greedy one, a base id (a thinking id where the base never runs); logits [vocab] that the
    token is taken from, with no id excluded; by_thinking, whether those are the thinking model's; logprobs
    [vocab] of the thinking model; fields, those of the record that do not depend on the token.
    """

    token: int
    logits: Tensor
    by_thinking: bool
    logprobs: Tensor | None
    fields: dict[str, Any]


def sampled(step: Step, sampling: NaiveSampling, chance: float, bridge: OneVocabulary) -> int:
    """The token that `chance` takes from the step's distribution, as an id of what is emitted."""
    if step.by_thinking:
        return bridge.first_base(take(filtered(bridge.crossing_thinking(step.logits), sampling), chance))
    return take(filtered(bridge.crossing_base(step.logits), sampling), chance)


def record_of(step: Step, token: int, bridge: OneVocabulary) -> dict[str, Any]:
    """The record of `token` at this step, without its position and text."""
    base_choice = step.fields["base_choice"]
    logprob = None if step.logprobs is None else float(step.logprobs[bridge.first_thinking(token)])
    changed = step.fields["steered"] and base_choice is not None and token != base_choice
    return step.fields | {"token": token, "changed": changed, "thinking_logprob": logprob}


def filtered(logits: Tensor, sampling: NaiveSampling) -> list[float]:
    """The probability of each id that is drawn from, in float64; `logits` [vocab] may hold -inf."""
    scores = logits.double() / sampling.temperature
    if sampling.top_k > 0:
        largest = sorted(scores.tolist(), reverse=True)[: sampling.top_k]
        scores[scores < largest[-1]] = -math.inf
    probabilities = torch.softmax(scores, dim=-1).tolist()
    if sampling.top_p >= 1:
        return probabilities
    kept = nucleus(probabilities, sampling.top_p)
    total = sum(probabilities[token] for token in kept)
    return [probability / total if token in kept else 0.0 for token, probability in enumerate(probabilities)]


def nucleus(probabilities: Sequence[float], top_p: float) -> set[int]:
    """The likeliest ids, down to the one with which their probabilities reach `top_p`; smaller ids first."""
    kept: set[int] = set()
    before = 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token)):
        if before >= top_p:
            break
        kept.add(token)
        before += probabilities[token]
    return kept


def take(probabilities: Sequence[float], chance: float) -> int:
    """The first id in ascending order whose cumulative probability exceeds `chance`, which is in [0, 1)."""
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > chance:
            return token
    return max(token for token, probability in enumerate(probabilities) if probability > 0)


def log_probability(logits: Tensor, token: int) -> float:
    """The natural log-softmax of one id over all of `logits` [vocab], in float64."""
    return float(torch.log_softmax(logits.double(), dim=-1)[token])
