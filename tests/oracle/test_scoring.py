"""Sampling and log-likelihoods of the naive loop, against transformers' own filters and plain forwards."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.oracle.models import Pair, random_steering, tiny_pair
from tests.oracle.naive import NaivePolicy, NaiveSteering, draw, naive_score, read
from tests.oracle.scoring import NaiveSampling, filtered, nucleus, take
from tests.oracle.test_oracle import PROMPT, adding, greedy, run
from tests.tolerances import approx


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair("llama", seed=0)


@pytest.fixture(scope="module")
def steering(pair: Pair) -> NaiveSteering:
    return random_steering(pair)


# Sampling


def taken_by(logits: Tensor, sampling: NaiveSampling, chance: float) -> int:
    """The token that `chance` takes after the filters of transformers itself."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.double()[None])
    scores = TopKLogitsWarper(sampling.top_k)(None, scores) if sampling.top_k else scores
    scores = TopPLogitsWarper(sampling.top_p)(None, scores) if sampling.top_p < 1 else scores
    return int((scores.softmax(-1).cumsum(-1)[0] > chance).nonzero()[0])


def test_filters_by_hand() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0]).log()  # the last cannot be taken at all
    assert filtered(logits, NaiveSampling(1.0)) == pytest.approx([0.1, 0.4, 0.2, 0.3, 0])
    assert filtered(logits, NaiveSampling(0.5)) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30, 0])
    assert filtered(logits, NaiveSampling(1.0, top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0])
    assert filtered(logits, NaiveSampling(1.0, top_k=9)) == pytest.approx([0.1, 0.4, 0.2, 0.3, 0])
    assert filtered(logits, NaiveSampling(1.0, top_p=0.65)) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0])
    assert filtered(logits, NaiveSampling(1.0, top_p=0.75)) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9, 0])
    assert filtered(logits, NaiveSampling(1.0, top_k=2, top_p=0.5)) == pytest.approx([0, 1, 0, 0, 0])  # 4/7 > 0.5
    assert filtered(torch.zeros(4), NaiveSampling(1.0, top_p=0.5)) == [0.5, 0.5, 0, 0]
    tied = torch.tensor([1.0, 0, 1, 1])
    assert filtered(tied, NaiveSampling(1.0, top_k=2)) == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert nucleus([0.25, 0.5, 0.25], 0.5) == {1}
    assert nucleus([0.25, 0.5, 0.25], 0.501) == {0, 1}
    assert nucleus([0.25, 0.5, 0.25], 0.001) == {1}


def test_the_token_taken_is_the_first_whose_cumulative_probability_exceeds_the_draw() -> None:
    assert [take([0, 0.25, 0, 0.75, 0], chance) for chance in (0.0, 0.2499, 0.25, 0.9999)] == [1, 1, 3, 3]
    assert take([0.5, 0.5 - 1e-9, 0], 1 - 1e-12) == 1


def test_sampled_frequencies_are_the_probabilities(pair: Pair) -> None:
    logits, _ = read(pair.base, PROMPT)
    sampling = NaiveSampling(temperature=2.0, top_k=6)
    expected = filtered(logits, sampling)
    never = NaivePolicy(gate="never")
    seeds = [run(pair, None, never, 1, sampling=replace(sampling, seed=seed))["tokens"][0] for seed in range(100)]
    repeats = [take(expected, draw(0, f"sample-{repeat}", 0, PROMPT)) for repeat in range(1, 5001)]
    positions = [take(expected, draw(0, "sample", position, PROMPT)) for position in range(5000)]
    kept = [token for token, probability in enumerate(expected) if probability > 0]
    assert len(kept) == 6
    for tokens in (seeds, repeats, positions):
        assert set(tokens) <= set(kept)
        due = [len(tokens) * expected[token] for token in kept]
        terms = [(tokens.count(token) - count) ** 2 / count for token, count in zip(kept, due, strict=True)]
        assert sum(terms) < 15.09  # 99% of chi-square with 5 degrees of freedom


@pytest.mark.parametrize("emit", ["candidate", "thinking"])
@pytest.mark.parametrize("gate", ["never", "disagreement", "always"])
def test_sampled_tokens_are_of_the_right_distribution_and_decisions_stay_greedy(
    pair: Pair, steering: NaiveSteering, gate: str, emit: str
) -> None:
    policy = NaivePolicy(gate=gate, emit=emit, coefficients=(0.5, 1.0), windows=(4,), seed=8)
    sampling = NaiveSampling(temperature=1.2, top_k=20, top_p=0.9, seed=3)
    result = run(pair, steering, policy, 6, sampling=sampling)
    for record in result["records"]:
        ids = PROMPT + result["tokens"][: record["position"]]
        decided = run(pair, steering, policy, 1, ids=ids)["records"][0]
        free = {"token", "text", "changed", "thinking_logprob", "position"}
        assert all(record[name] == decided[name] for name in decided if name not in free)
        row = torch.tensor([ids])
        with torch.no_grad():
            thinking = pair.thinking(row).logits[0, -1]
            if record["coefficient"] is not None:
                direction = record["coefficient"] * (steering.bias + steering.vectors[record["category"]])
                with adding(pair.base, steering.layer, direction, record["window"]):
                    logits = pair.base(row).logits[0, -1]
            else:
                logits = thinking if record["steered"] else pair.base(row).logits[0, -1]
        assert record["token"] == taken_by(logits, sampling, draw(3, "sample", record["position"], PROMPT))
        assert record["text"] == pair.tokenizer.decode([record["token"]])
        base_runs = record["base_choice"] is not None
        assert record["changed"] == (record["steered"] and base_runs and record["token"] != record["base_choice"])
        if gate != "never":
            logprob = float(thinking.log_softmax(-1)[record["token"]])
            assert record["thinking_logprob"] == approx(logprob)


def test_sampling_with_one_token_to_take_is_greedy(pair: Pair, steering: NaiveSteering) -> None:
    policy = NaivePolicy(coefficients=(0.5, 1.0))
    expected = run(pair, steering, policy, 5)
    for sampling in (NaiveSampling(5.0, top_k=1), NaiveSampling(1.0, top_p=1e-9), NaiveSampling(1e-4)):
        assert run(pair, steering, policy, 5, sampling=sampling) == expected


def test_seeds_and_repeats_make_the_samples_and_eos_ends_them(pair: Pair) -> None:
    def tokens(seed: int, repeat: int, policy_seed: int = 0, **kwargs: Any) -> list[int]:
        sampling = NaiveSampling(3.0, seed=seed, repeat=repeat)
        return run(pair, None, NaivePolicy(gate="never", seed=policy_seed), sampling=sampling, **kwargs)["tokens"]

    first = tokens(1, 0)
    assert tokens(1, 0) == tokens(1, 0, policy_seed=9) == first
    assert len({tuple(tokens(*draws)) for draws in [(1, 0), (2, 0), (1, 1), (1, 2), (2, 1)]}) == 5
    assert tokens(1, 0, eos_id=first[4]) == first[: first.index(first[4])]


# Log-likelihood


def score(
    pair: Pair, steering: NaiveSteering | None, policy: NaivePolicy, continuation: list[int]
) -> tuple[float, bool]:
    return naive_score(pair.base, pair.thinking, None, steering, policy, PROMPT, PROMPT, continuation)


@pytest.mark.parametrize("alone", [NaivePolicy(gate="never"), NaivePolicy(gate="always", emit="thinking")])
def test_score_of_one_model_is_its_log_likelihood(pair: Pair, alone: NaivePolicy) -> None:
    model = pair.base if alone.gate == "never" else pair.thinking
    answer = greedy(model, PROMPT, 5)
    for continuation, is_greedy in [(answer, True), ([*answer[:-1], 40], False), ([40, *answer], False)]:
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + continuation])).logits[0, len(PROMPT) - 1 : -1]
        expected = float(logits.double().log_softmax(-1)[range(len(continuation)), continuation].sum())
        total, flag = score(pair, None, alone, continuation)
        assert total == approx(expected, len(continuation))
        assert flag == is_greedy
    assert score(pair, None, alone, []) == (0.0, True)


@pytest.mark.parametrize("emit", ["candidate", "thinking"])
def test_score_of_the_hybrid_takes_each_position_from_its_source(
    pair: Pair, steering: NaiveSteering, emit: str
) -> None:
    policy = NaivePolicy(emit=emit, coefficients=(0.5, 1.0), windows=(4,))
    answer = run(pair, steering, policy, 5)["tokens"]
    assert score(pair, steering, policy, answer)[1]
    forced = [*answer[:2], 40, 41, *answer[2:]]
    expected, sources = 0.0, []
    for position, token in enumerate(forced):
        ids = PROMPT + forced[:position]
        record = run(pair, steering, policy, 1, ids=ids)["records"][0]
        model = pair.thinking if record["steered"] and emit == "thinking" else pair.base
        direction, window = torch.zeros_like(steering.bias), 0
        if record["coefficient"] is not None:
            direction = record["coefficient"] * (steering.bias + steering.vectors[record["category"]])
            window = record["window"]
        with adding(model, steering.layer, direction, window), torch.no_grad():
            expected += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
        sources.append(record["steered"])
    assert 0 < sum(sources) < len(forced)
    total, flag = score(pair, steering, policy, forced)
    assert total == approx(expected, len(forced))
    assert not flag
