"""Pairs whose tokenizers differ, against the naive bridge and the naive loop of tests/oracle."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import ARMS, policy_for
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from tests.decoding.comparing import (
    DEFAULTS,
    answers_of,
    assert_equal,
    check,
    decoder_of,
    naive,
    naively_scored,
    remote_decoder_of,
)
from tests.oracle.crossing import NaiveBridge
from tests.oracle.models import random_steering
from tests.oracle.tokenizers import CrossedPair, byte_level_tokenizer, crossed_pair, metaspace_tokenizer
from tests.tolerances import approx

TOKENIZERS = {
    "bytes": byte_level_tokenizer(100),
    "few": byte_level_tokenizer(40),
    "many": byte_level_tokenizer(200),
    "pieces": metaspace_tokenizer(),
    "prepended": metaspace_tokenizer(prepend=True),
}
ORDERED = [("bytes", "pieces"), ("pieces", "many"), ("few", "many"), ("many", "few"), ("prepended", "bytes")]
TEXTS = ["First we find the other number.", "the sum is 10 * 11", "café", "Hmm, I should verify"]


@pytest.fixture(scope="module", params=ORDERED[:3], ids="-".join)
def pair(request: pytest.FixtureRequest) -> CrossedPair:
    ours, theirs = (TOKENIZERS[name] for name in request.param)
    return crossed_pair(ours, theirs, padding=3)


def prompts_of(pair: CrossedPair) -> list[Prompt]:
    return [Prompt(pair.base_tokenizer.encode(text), pair.thinking_tokenizer.encode(text)) for text in TEXTS]


@pytest.mark.parametrize("names", ORDERED, ids="-".join)
def test_every_id_crosses_as_the_naive_bridge_says(names: tuple[str, str]) -> None:
    ours, theirs = (TOKENIZERS[name] for name in names)
    bridge, slow = Bridge(ours, theirs), NaiveBridge(ours, theirs)
    for token in ours.get_vocab().values():
        assert bridge.cross(token) == (slow.to_thinking(token) or ())
    back = Bridge(theirs, ours)
    for token in theirs.get_vocab().values():
        assert back.cross(token) == (slow.to_base(token) or ())


@pytest.mark.parametrize("names", ORDERED, ids="-".join)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_text_survives_crossing(names: tuple[str, str], text: str) -> None:
    ours, theirs = (TOKENIZERS[name] for name in names)
    bridge, ids = BRIDGES[names], ours.encode(text, add_special_tokens=False)
    crossed = [index for token in ids for index in bridge.cross(token)]
    before, after = spelled(ours, ids), spelled(theirs, crossed)
    # Some decoders take the first space away, some do not.
    assert before == after or " " + before == after or before == " " + after


BRIDGES = {names: Bridge(*(TOKENIZERS[name] for name in names)) for names in ORDERED}


def spelled(tokenizer: object, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arm",
    [arm if arm in ("hybrid", "takeover", "thinking") else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS],
)
def test_arms(pair: CrossedPair, arm: str) -> None:
    if arm == "thinking":  # a model that nothing has to cross from says padding in the naive loop, which is no token
        pair = crossed_pair(pair.base_tokenizer, pair.thinking_tokenizer)
    check(pair, policy_for(arm, DEFAULTS), prompts_of(pair)[1:3], new=8)


@pytest.mark.parametrize("arm", ["hybrid", "takeover"])
def test_arms_remote(pair: CrossedPair, arm: str) -> None:
    check(pair, policy_for(arm, DEFAULTS), prompts_of(pair)[1:3], new=8, decoder=remote_decoder_of)


@pytest.mark.parametrize("longest_draft", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_draft_length_changes_no_token(pair: CrossedPair, longest_draft: int) -> None:
    answers = check(pair, DEFAULTS, prompts_of(pair)[:3], new=12, longest_draft=longest_draft)
    assert 0 < sum(answer.steered_fraction for answer in answers) < len(answers)


def test_sampling_and_stop_strings(pair: CrossedPair) -> None:
    steering, policy = random_steering(pair), replace(DEFAULTS, emit="thinking")
    requests = [
        Request(prompt, 14, ("e", ". "), Sampling(1.0, seed=seed)) for seed, prompt in enumerate(prompts_of(pair))
    ]
    for request, answer in zip(requests, answers_of(decoder_of(pair, steering, policy), requests, 2), strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)


@pytest.mark.parametrize("maker", [decoder_of, remote_decoder_of], ids=["local", "remote"])
@pytest.mark.parametrize("arm", ["hybrid", "takeover", "thinking"])
def test_scores(pair: CrossedPair, arm: str, maker: Callable[..., HybridDecoder]) -> None:
    steering, policy = random_steering(pair), policy_for(arm, DEFAULTS)
    speaker = pair.base_tokenizer if policy.reads_base else pair.thinking_tokenizer
    continuations = [speaker.encode(text) for text in (" the answer", " 55.", "é y", "so we")]
    prompts = prompts_of(pair)
    scores = maker(pair, steering, policy).score(prompts, continuations)
    for prompt, continuation, (total, greedy) in zip(prompts, continuations, scores, strict=True):
        expected, same = naively_scored(pair, steering, policy, prompt, continuation)
        assert total == approx(expected, len(continuation))
        assert greedy == same


def test_an_answer_that_overflows_the_thinking_model_alone_is_cut(
    pair: CrossedPair, caplog: pytest.LogCaptureFixture
) -> None:
    steering, prompt = random_steering(pair), prompts_of(pair)[1]
    context = len(prompt.thinking_ids) + 20
    requests = [Request(prompt, 20), Request(prompt, 4)]
    long, short = answers_of(decoder_of(pair, steering, DEFAULTS), requests, 2)
    decoder = decoder_of(pair, steering, DEFAULTS)
    decoder._context.verification.model.context_length = context
    cut, same = answers_of(decoder, requests, 2)
    bridge = Bridge(pair.base_tokenizer, pair.thinking_tokenizer)
    read, fitting = len(prompt.thinking_ids), 0
    for token in long.tokens:
        if read > context:
            break
        fitting += 1
        read += len(bridge.cross(token))
    assert cut.tokens == long.tokens[:fitting]
    assert (cut.finish, same.tokens) == ("length", short.tokens)
    assert (fitting < len(long.tokens)) == ("fill its context" in caplog.text)
