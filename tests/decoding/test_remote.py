"""Decoding with models as on a server, in nnsight's own simulation of one, against the naive loop of tests/oracle."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import pytest

from lm_eval_hybrid.decoding import views
from lm_eval_hybrid.decoding.ndif.views import RemoteThinkingView
from lm_eval_hybrid.decoding.policy import ARMS, policy_for
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.sampling import Sampling
from tests.decoding.comparing import (
    DEFAULTS,
    PROMPTS,
    answers_of,
    assert_equal,
    check,
    naive,
    pair_of,
    remote_decoder_of,
)
from tests.oracle.models import FAMILIES, random_prompts, random_steering

SIDES = {"base": (True, False), "thinking": (False, True), "both": (True, True)}


def some(values: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Values to test with; only the quick ones are in the fast suite."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("arm", ARMS)
def test_arms(arm: str) -> None:
    check(pair_of("llama", 2), policy_for(arm, DEFAULTS), decoder=remote_decoder_of)


@pytest.mark.parametrize("side", ["base", "thinking"])
@pytest.mark.parametrize("arm", some(ARMS, ("hybrid",)))
def test_one_model_local(arm: str, side: str) -> None:
    check(pair_of("llama", 2), policy_for(arm, DEFAULTS), decoder=remote_decoder_of, sides=SIDES[side])


@pytest.mark.parametrize("family", some(FAMILIES, ("llama", "mistral", "gpt2", "gemma3")))
def test_architectures(family: str) -> None:
    answers = check(pair_of(family, 0), DEFAULTS, decoder=remote_decoder_of)
    assert 0 < sum(answer.steered_fraction for answer in answers) < len(answers)


@pytest.mark.parametrize("gate", ["always", "random"])
@pytest.mark.parametrize("select", ["guardrail", "mlp", "random"])
def test_gates_and_selectors(gate: str, select: str) -> None:
    change = {"coefficients": (1.5,), "windows": (8,)} if select == "mlp" else {}
    policy = dataclasses.replace(DEFAULTS, gate=gate, select=select, **change)
    check(pair_of("llama", 1), policy, PROMPTS[:2], decoder=remote_decoder_of)


@pytest.mark.parametrize("windows", [(1,), (8, 0, 1), (0,), (400,)], ids=str)
def test_windows(windows: tuple[int, ...]) -> None:
    check(pair_of("qwen2", 0), dataclasses.replace(DEFAULTS, windows=windows), decoder=remote_decoder_of)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("arm", ["hybrid", "takeover", "thinking"])
def test_uneven_requests_come_and_go(arm: str, slots: int) -> None:
    pair, policy = pair_of("llama", 0), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    prompts = [Prompt(ids, [*range(5, 5 + i % 3), *ids]) for i, ids in enumerate(random_prompts(5, seed=37))]
    stops = [("\n\n", "the", "q"), ("an", "0\n"), (), (), ("a",)]
    requests = [Request(*each) for each in zip(prompts, [25, 9, 1, 0, 12], stops, strict=True)]
    answers = answers_of(remote_decoder_of(pair, steering, policy), requests, slots)
    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)


@pytest.mark.parametrize("arm", ["base", "hybrid", "takeover", "thinking"])
def test_sampled_tokens_are_the_same(arm: str) -> None:
    pair, policy = pair_of("llama", 2), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    sampling = Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=5)
    requests = [Request(prompt, 10, sampling=sampling) for prompt in PROMPTS[:2]]
    answers = answers_of(remote_decoder_of(pair, steering, policy), requests, 2)
    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_candidates_outside_the_likeliest_tokens(sides: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few likeliest tokens most candidates are not among them, and exact log-probabilities have to be requested."""
    monkeypatch.setattr(views, "TOP_K", 2)
    asked = []
    exact = RemoteThinkingView.logprobs
    monkeypatch.setattr(RemoteThinkingView, "logprobs", lambda self, *places: asked.append(1) or exact(self, *places))
    check(pair_of("llama", 0), DEFAULTS, decoder=remote_decoder_of, sides=sides)
    assert sides == SIDES["base"] or asked


def test_a_round_costs_one_request_a_model() -> None:
    """Whatever the number of rows, and whether they are steered or not."""
    pair = pair_of("llama", 0)
    decoder = remote_decoder_of(pair, random_steering(pair), DEFAULTS)
    base, thinking = decoder._context.speaker, decoder._context.verification.model
    before = base.traffic.requests, thinking.traffic.requests
    answers = answers_of(decoder, [Request(prompt, 12) for prompt in PROMPTS], len(PROMPTS))
    asked = base.traffic.requests - before[0], thinking.traffic.requests - before[1]
    rounds = max(sum(record.steered for record in answer.records) for answer in answers)
    # One base request drafts for the first round; each later one also steers in the round before.
    assert asked[0] <= asked[1] + 1
    assert rounds <= asked[1] <= rounds + 3
