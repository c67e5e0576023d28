"""Log-likelihoods, read in pieces and steered wherever the gate opens, against the naive loop's."""

from dataclasses import replace

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.local import LocalDrafter, LocalVerifier
from lm_eval_hybrid.decoding.ndif.remote import RemoteDrafter, RemoteVerifier
from lm_eval_hybrid.decoding.policy import ARMS, policy_for
from lm_eval_hybrid.decoding.request import Prompt
from tests.decoding.comparing import DEFAULTS, PROMPTS, decoder_of, naively_scored, pair_of, remote_decoder_of
from tests.oracle.models import random_prompts, random_steering
from tests.tolerances import approx

# Several texts follow one prompt, as in multiple choice.
CONTEXTS = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], Prompt(PROMPTS[0].base_ids, PROMPTS[3].thinking_ids)]
TEXTS = [*random_prompts(4, seed=5, shortest=2, longest=14), [7]]
MOST = max(map(len, TEXTS))


@pytest.mark.parametrize("arm", ARMS)
def test_scores(arm: str) -> None:
    pair, policy = pair_of("llama", 2), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    scores = decoder_of(pair, steering, policy).score(CONTEXTS, TEXTS)
    for prompt, text, (total, greedy) in zip(CONTEXTS, TEXTS, scores, strict=True):
        expected, same = naively_scored(pair, steering, policy, prompt, text)
        assert total == approx(expected, len(text))
        assert greedy == same


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma3"])
@pytest.mark.parametrize("piece", [3, 64])
def test_scores_are_the_same_in_pieces(family: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalVerifier, "piece", piece)
    monkeypatch.setattr(LocalDrafter, "piece", piece)
    monkeypatch.setattr(LocalDrafter, "steered_at_once", piece)
    pair, policy = pair_of(family, 0), replace(DEFAULTS, windows=(1, 8))
    steering = random_steering(pair)
    for prompt, text, score in zip(
        CONTEXTS, TEXTS, decoder_of(pair, steering, policy).score(CONTEXTS, TEXTS), strict=True
    ):
        assert score[0] == approx(naively_scored(pair, steering, policy, prompt, text)[0], len(text))


SIDES = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("sides", SIDES, ids=["both", "base", "thinking"])
@pytest.mark.parametrize("arm", ARMS)
def test_scores_of_models_on_a_server(arm: str, sides: tuple[bool, bool]) -> None:
    pair, policy = pair_of("llama", 2), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    found = remote_decoder_of(pair, steering, policy, sides).score(CONTEXTS, TEXTS)
    for (total, greedy), (expected, same) in zip(
        found, decoder_of(pair, steering, policy).score(CONTEXTS, TEXTS), strict=True
    ):
        assert total == approx(expected, MOST)
        assert greedy == same


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma3"])
def test_a_server_that_knows_few_likely_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_hybrid.decoding.views.TOP_K", 2)
    monkeypatch.setattr(RemoteVerifier, "piece", 5)
    monkeypatch.setattr(RemoteDrafter, "piece", 5)
    monkeypatch.setattr(RemoteDrafter, "steered_at_once", 3)
    pair, policy = pair_of(family, 0), replace(DEFAULTS, windows=(0, 1, 8))
    steering = random_steering(pair)
    found = remote_decoder_of(pair, steering, policy).score(CONTEXTS, TEXTS)
    for prompt, text, (total, greedy) in zip(CONTEXTS, TEXTS, found, strict=True):
        expected, same = naively_scored(pair, steering, policy, prompt, text)
        assert total == approx(expected, len(text))
        assert greedy == same


@pytest.mark.parametrize("arm", ["hybrid", "takeover", "random-positions"])
def test_what_is_generated_is_scored_as_greedy(arm: str) -> None:
    pair, policy = pair_of("llama", 0), policy_for(arm, DEFAULTS)
    decoder = decoder_of(pair, random_steering(pair), policy)
    answers = decoder.generate(PROMPTS, [14, 9, 16, 5])
    assert all(greedy for _, greedy in decoder.score(PROMPTS, [answer.tokens for answer in answers]))
    assert {record.steered for answer in answers for record in answer.records} == {True, False}


def test_a_token_that_the_thinking_model_cannot_read_is_an_error() -> None:
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS)
    with pytest.raises(HybridError, match=r"base ids \[9999\] cannot be written"):
        decoder.score(PROMPTS[:1], [[5, 9999, 6]])
