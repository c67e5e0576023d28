"""Sampling: the same tokens for the same seed whatever the batch, from the distributions of the naive loop."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import policy_for
from lm_eval_hybrid.decoding.request import Request
from lm_eval_hybrid.decoding.sampling import Sampling
from tests.decoding.comparing import DEFAULTS, PROMPTS, answers_of, assert_equal, decoder_of, naive, pair_of
from tests.oracle.models import random_steering

SEEDS = 400
SAMPLINGS = [Sampling(0.7, seed=1), Sampling(1.3, top_k=5, seed=2), Sampling(1.0, top_p=0.8, seed=3, repeat=2), None]


@pytest.mark.parametrize("arm", ["base", "hybrid", "takeover", "thinking", "random-positions"])
@pytest.mark.parametrize("slots", [1, 3])
def test_the_naive_loop_draws_the_same(arm: str, slots: int) -> None:
    pair, policy = pair_of("llama", 0), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    requests = [Request(*each) for each in zip(PROMPTS, [12] * 4, [()] * 4, SAMPLINGS, strict=True)]
    answers = answers_of(decoder_of(pair, steering, policy), requests, slots)
    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)


def test_seeds_and_repeats_differ() -> None:
    pair = pair_of("llama", 0)
    draws = [Sampling(1.0, seed=0), Sampling(1.0, seed=1), Sampling(1.0, seed=0, repeat=1), Sampling(1.0, seed=0)]
    requests = [Request(PROMPTS[0], 20, (), sampling) for sampling in draws]
    texts = [answer.text for answer in answers_of(decoder_of(pair, random_steering(pair), DEFAULTS), requests, 4)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_tokens_have_the_distribution_of_the_model() -> None:
    """The base's first two tokens over many seeds, drafted, against its own probabilities."""
    pair, policy = pair_of("llama", 0), replace(DEFAULTS, coefficients=(0.0,), windows=(1,))
    requests = [Request(PROMPTS[0], 2, (), Sampling(1.0, top_k=4, seed=seed)) for seed in range(SEEDS)]
    answers = answers_of(decoder_of(pair, random_steering(pair), policy), requests, 100)
    seen = Counter(answer.tokens for answer in answers)
    expected = {}
    with torch.no_grad():
        ids = list(PROMPTS[0].base_ids)
        first = pair.base(torch.tensor([ids])).logits[0, -1].topk(4)
        for token, chance in zip(first.indices.tolist(), first.values.softmax(0).tolist(), strict=True):
            second = pair.base(torch.tensor([[*ids, token]])).logits[0, -1].topk(4)
            for other, then in zip(second.indices.tolist(), second.values.softmax(0).tolist(), strict=True):
                expected[token, other] = chance * then * SEEDS
    assert seen.keys() <= expected.keys()
    # Rare pairs are pooled: chi-square needs five or more of each.
    often = [pair for pair, count in expected.items() if count >= 5]
    rest = SEEDS - sum(expected[pair] for pair in often), SEEDS - sum(seen[pair] for pair in often)
    fit = chisquare([*(seen[pair] for pair in often), rest[1]], [*(expected[pair] for pair in often), rest[0]])
    assert fit.pvalue > 0.001


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not a finite number above 0"),
        ({"temperature": float("nan")}, "temperature=nan is not"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1 is not 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0 is not above 0"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, float], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        Sampling(**values)  # type: ignore[arg-type]


def test_filters() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 1.0, -torch.inf])

    def kept(**filters: float) -> list[int]:
        return Sampling(1.0, **filters).probabilities(logits).nonzero()[:, 0].tolist()  # type: ignore[arg-type]

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 2, 3], "as likely as the second"
    assert kept(top_p=0.5) == [1]
    assert kept(top_p=0.7) == [1, 2], "of equals the first"
    assert kept(top_k=1) == [1]
