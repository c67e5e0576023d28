"""The cached, batched decoder against the naive loop of tests/oracle: token for token, record for record."""

import dataclasses
import math
from functools import cache
from typing import Any

import pytest

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.decoding.arms import ARMS, policy_for
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.decoding.steering import CoefficientNetwork, SparseEncoder, Steering
from lm_eval_hybrid.decoding.trace import Generation
from tests.oracle.models import EOS_ID, Pair, random_prompts, random_steering, tiny_pair
from tests.oracle.naive import NaivePolicy, NaiveSteering, naive_generate

NEW_TOKENS = 10
PROMPTS = [Prompt(ids, ids) for ids in random_prompts(4, seed=3)]
DEFAULTS = Policy(coefficients=(0.5, 1.5), windows=(1, 8, 0), gate_rate=0.3, seed=11)
ONE = {"coefficients": (1.5,), "windows": (8,)}


@cache
def pair_of(family: str, seed: int, width: int = 0, layers: int = 0) -> Pair:
    return tiny_pair(family, seed, width, layers)


def of_package(naive: NaiveSteering) -> Steering:
    """The oracle's steering tensors in the package's form."""
    return Steering(
        layer=naive.layer,
        bias=naive.bias,
        vectors=naive.vectors,
        keys=naive.keys,
        sae_layer=naive.sae_layer,
        encoder=SparseEncoder(naive.mean, naive.b_dec, naive.W_e, naive.b_e),
        network=CoefficientNetwork(naive.trunk_weight, naive.trunk_bias, naive.heads_weight, naive.heads_bias),
    )


def naive(
    pair: Pair,
    steering: NaiveSteering,
    policy: Policy,
    prompt: Prompt,
    stop: tuple[str, ...] = (),
    new: int = NEW_TOKENS,
) -> dict[str, Any]:
    return naive_generate(
        pair.base,
        pair.thinking,
        (pair.tokenizer, pair.tokenizer),
        steering,
        NaivePolicy(**dataclasses.asdict(policy)),
        prompt.base_ids,
        prompt.thinking_ids,
        new,
        stop,
        lambda ids: pair.tokenizer.decode(ids, skip_special_tokens=True),
        EOS_ID,
    )


def decoder_of(pair: Pair, steering: NaiveSteering, policy: Policy) -> HybridDecoder:
    return HybridDecoder(
        LocalBackend(pair.base, pair.tokenizer),
        LocalBackend(pair.thinking, pair.tokenizer),
        of_package(steering),
        policy,
    )


def assert_equal(ours: Generation, theirs: dict[str, Any], policy: Policy) -> None:
    assert list(ours.tokens) == theirs["tokens"]
    assert (ours.text, ours.finish) == (theirs["text"], theirs["finish"])
    for mine, naive_record in zip(ours.records, theirs["records"], strict=True):
        expected = dict(naive_record)
        if not policy.reads_thinking:  # the naive loop runs it all the same
            expected |= {"thinking_logprob": None, "thinking_choice": None}
        for field in ("thinking_logprob", "coefficient"):
            mine_value, value = getattr(mine, field), expected.pop(field)
            if value is None or mine_value is None:
                assert mine_value is value
            else:
                assert math.isclose(mine_value, value, rel_tol=1e-4, abs_tol=1e-4), field
        # The naive record has the token's text alone; ours ends where the answer does.
        assert expected.pop("text").startswith(mine.text)
        assert {field: getattr(mine, field) for field in expected} == expected


def check(pair: Pair, policy: Policy, prompts: list[Prompt] = PROMPTS, layer: int = 1) -> list[Generation]:
    steering = random_steering(pair, layer=layer)
    answers = decoder_of(pair, steering, policy).generate(prompts, NEW_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_equal(answer, naive(pair, steering, policy, prompt), policy)
    return answers


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("windows", [(1,), (8,), (0,), (8, 0, 1)], ids=str)
def test_windows(family: str, windows: tuple[int, ...]) -> None:
    answers = check(pair_of(family, 0), dataclasses.replace(DEFAULTS, windows=windows))
    # The comparison means something only where both kinds of step occur.
    assert 0 < sum(a.steered_fraction for a in answers) < len(answers)
    assert sum(a.changed_fraction for a in answers) > 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("gate", ["disagreement", "never", "always", "random"])
@pytest.mark.parametrize("select", ["guardrail", "fixed", "mlp", "random"])
def test_gates_and_selectors(family: str, gate: str, select: str) -> None:
    change = ONE if select in ("fixed", "mlp") else {}
    check(pair_of(family, 1), dataclasses.replace(DEFAULTS, gate=gate, select=select, **change))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("arm", ARMS)
def test_arms(family: str, arm: str) -> None:
    check(pair_of(family, 2), policy_for(arm, DEFAULTS))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_other_architectures(family: str) -> None:
    check(pair_of(family, 0), DEFAULTS)


@pytest.mark.parametrize("layer", [0, 3])
def test_first_and_last_layer(layer: int) -> None:
    check(pair_of("llama", 0), DEFAULTS, layer=layer)


def test_a_wider_and_deeper_thinking_model() -> None:
    check(pair_of("llama", 4, width=48, layers=6), DEFAULTS)


def test_the_prompts_may_differ() -> None:
    prompts = [Prompt(p.base_ids, [*range(5, 5 + i), *p.thinking_ids]) for i, p in enumerate(PROMPTS)]
    check(pair_of("qwen2", 0), DEFAULTS, prompts)


def test_alone_or_in_a_batch() -> None:
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), policy_for("random-category", DEFAULTS))
    together = decoder.generate(PROMPTS, NEW_TOKENS)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = decoder.generate([prompt], NEW_TOKENS)
        assert alone.tokens == answer.tokens
        assert alone.text == answer.text


@pytest.mark.parametrize("arm", ["hybrid", "base", "thinking"])
def test_stop_strings_and_ends(arm: str) -> None:
    """Over enough text that some answers end at a stop string, some at the end of sequence, some at the limit."""
    pair, policy = pair_of("llama", 0), policy_for(arm, DEFAULTS)
    steering, prompts = random_steering(pair), [Prompt(ids, ids) for ids in random_prompts(12, seed=8)]
    stops = [("\n\n", "the", "q"), ("an", "0\n"), ()] * 4
    limits = [25, 9, 40] * 4
    answers = decoder_of(pair, steering, policy).generate(prompts, limits, stops)
    for prompt, answer, stop, limit in zip(prompts, answers, stops, limits, strict=True):
        assert_equal(answer, naive(pair, steering, policy, prompt, stop, limit), policy)
    assert {answer.finish for answer in answers} == {"stop", "length", "eos"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_long_answers(family: str) -> None:
    """Rounding has the time to add up, caches to grow, and rows to be dropped."""
    pair, prompts = pair_of(family, 6), [Prompt(ids, ids) for ids in random_prompts(8, seed=6)]
    steering = random_steering(pair)
    answers = decoder_of(pair, steering, DEFAULTS).generate(prompts, 150)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_equal(answer, naive(pair, steering, DEFAULTS, prompt, new=150), DEFAULTS)
