"""Beyond the comparison with the oracle: errors, log-likelihoods, padded vocabularies, models that are not run."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import ARMS, Policy, policy_for
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.steering import SparseEncoder, Steering
from lm_eval_hybrid.models.local import LocalBackend
from tests.oracle.models import CONTEXT, Pair, random_prompts, random_steering, tiny_pair, tiny_tokenizer
from tests.oracle.naive import read, read_steered
from tests.tolerances import approx

POLICY = Policy(coefficients=(0.5, 1.5), windows=(1, 0), gate_rate=0.3)
PROMPTS = [Prompt(ids, ids) for ids in random_prompts(3, seed=1)]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair("llama", seed=0)


@pytest.fixture(scope="module")
def steering(pair: Pair) -> Steering:
    drawn = random_steering(pair)
    encoder = SparseEncoder(drawn.mean, drawn.b_dec, drawn.W_e, drawn.b_e)
    return Steering(drawn.layer, drawn.bias, drawn.vectors, drawn.keys, drawn.sae_layer, encoder)


def decoder_of(pair: Pair, steering: Steering | None, policy: Policy = POLICY) -> HybridDecoder:
    return HybridDecoder(
        LocalBackend(pair.base, pair.tokenizer), LocalBackend(pair.thinking, pair.tokenizer), steering, policy
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt([], [5]), "prompt is empty"),
        (Prompt([5], []), "prompt is empty"),
        (Prompt([5] * 250, [5]), f"250 tokens with 7 to generate exceeds the model's context of {CONTEXT} tokens"),
        (Prompt([5], [5] * 250), f"250 tokens with 7 to generate exceeds the model's context of {CONTEXT} tokens"),
    ],
)
def test_prompts_that_cannot_be_answered(pair: Pair, steering: Steering, prompt: Prompt, message: str) -> None:
    with pytest.raises(HybridError, match=message):
        decoder_of(pair, steering).generate([PROMPTS[0], prompt], 7)


def test_a_prompt_may_fill_the_context(pair: Pair) -> None:
    (answer,) = decoder_of(pair, None, policy_for("base", POLICY)).generate([Prompt([5] * (CONTEXT - 2), [])], 2)
    assert len(answer.tokens) == 2


def test_a_policy_refuses_to_run_without_what_it_needs(pair: Pair, steering: Steering) -> None:
    base = LocalBackend(pair.base, pair.tokenizer)
    with pytest.raises(HybridError, match="thinking model"):
        HybridDecoder(base, None, steering, POLICY)
    with pytest.raises(HybridError, match="steering vectors"):
        decoder_of(pair, None)
    with pytest.raises(HybridError, match="coefficient"):
        decoder_of(pair, steering, replace(POLICY, select="mlp", windows=(1,)))
    assert HybridDecoder(base, None, None, policy_for("base", POLICY)).generate(PROMPTS, 2)


def test_empty_requests(pair: Pair, steering: Steering) -> None:
    decoder = decoder_of(pair, steering)
    assert decoder.generate([], 5) == []
    assert decoder.score([], []) == []
    (answer,) = decoder.generate(PROMPTS[:1], 0)
    assert (answer.tokens, answer.text, answer.finish) == ((), "", "length")
    assert decoder.score(PROMPTS[:1], [[]]) == [(0.0, True)]


@pytest.mark.parametrize(("arm", "unread"), [("base", "thinking"), ("thinking", "base")])
def test_a_model_that_is_not_read_is_not_run(pair: Pair, steering: Steering, arm: str, unread: str) -> None:
    calls = []
    hook = getattr(pair, unread).register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        decoder_of(pair, steering, policy_for(arm, POLICY)).generate(PROMPTS, 3)
    finally:
        hook.remove()
    assert not calls


def test_forward_passes_are_one_a_token_a_model(pair: Pair, steering: Steering) -> None:
    calls = []
    hook = pair.base.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        decoder_of(pair, steering, policy_for("base", POLICY)).generate(PROMPTS, 6)
    finally:
        hook.remove()
    assert len(calls) == 1 + 6, "one pass to prefill the prompts, then one for each token"


@pytest.mark.parametrize("arm", ARMS)
def test_its_own_answer_is_scored_as_greedy(pair: Pair, steering: Steering, arm: str) -> None:
    decoder = decoder_of(pair, steering, policy_for(arm, POLICY))
    answers = decoder.generate(PROMPTS, [4, 9, 6])
    scores = decoder.score(PROMPTS, [answer.tokens for answer in answers])
    assert all(greedy and total < 0 for total, greedy in scores)
    other = [list(answer.tokens) for answer in answers]
    for tokens in other:
        tokens[-1] = 3 if tokens[-1] != 3 else 4
    worse = decoder.score(PROMPTS, other)
    assert not any(greedy for _, greedy in worse)


@pytest.mark.parametrize(("arm", "alone"), [("base", "base"), ("thinking", "thinking")])
def test_one_models_scores_are_its_own(pair: Pair, arm: str, alone: str) -> None:
    continuations = random_prompts(3, seed=9, shortest=2, longest=5)
    scores = decoder_of(pair, None, policy_for(arm, POLICY)).score(PROMPTS, continuations)
    for prompt, continuation, (total, _) in zip(PROMPTS, continuations, scores, strict=True):
        ids = torch.tensor([[*prompt.base_ids, *continuation]])
        with torch.no_grad():
            logprobs = getattr(pair, alone)(ids).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(prompt.base_ids) - 1 + i, t]) for i, t in enumerate(continuation))
        assert total == approx(expected, len(continuation))


def test_a_score_is_the_bases_where_shut_and_the_candidates_where_open(pair: Pair, steering: Steering) -> None:
    decoder = decoder_of(pair, steering)
    (answer,) = decoder.generate(PROMPTS[:1], 12)
    ids, expected = list(PROMPTS[0].base_ids), 0.0
    assert {record.steered for record in answer.records} == {True, False}
    for record in answer.records:
        logits: Tensor = read(pair.base, ids)[0]
        if record.steered:
            direction = record.coefficient * (steering.bias + steering.vectors[record.category])
            logits = read_steered(pair.base, ids, steering.layer, direction, record.window)
        expected += float(logits.log_softmax(-1)[record.token])
        ids.append(record.token)
    ((total, _),) = decoder.score(PROMPTS[:1], [answer.tokens])
    assert total == approx(expected, len(answer.tokens))


def test_padding_of_the_vocabulary_is_never_chosen(pair: Pair, steering: Steering) -> None:
    """Rows that only pad the embedding are never chosen, even if far likelier than any token."""
    decoder = decoder_of(pair, steering)
    expected = decoder.generate(PROMPTS, 8)
    padded = tiny_pair("llama", seed=0)
    for model in (padded.base, padded.thinking):
        model.resize_token_embeddings(len(tiny_tokenizer()) + 8, mean_resizing=False)
        with torch.no_grad():
            model.lm_head.weight[-8:] = 5.0
    answers = decoder_of(padded, steering).generate(PROMPTS, 8)
    assert [a.tokens for a in answers] == [e.tokens for e in expected]


def test_a_continuation_may_end_one_token_beyond_the_context(pair: Pair, steering: Steering) -> None:
    decoder, prompt = decoder_of(pair, steering, policy_for("base", POLICY)), PROMPTS[0]
    room = LocalBackend(pair.base, pair.tokenizer).context_length - len(prompt.base_ids)
    assert len(decoder.score([prompt], [[5] * (room + 1)])) == 1
    with pytest.raises(HybridError, match="exceeds the model's context"):
        decoder.score([prompt], [[5] * (room + 2)])


@pytest.mark.parametrize(("poisoned", "role"), [("base", "base"), ("thinking", "thinking")])
def test_nan_logits_end_the_run_and_lose_no_answer(steering: Steering, poisoned: str, role: str) -> None:
    pair = tiny_pair("llama", seed=0)
    decoder = decoder_of(pair, steering)
    finished = decoder.stream([Request(prompt, limit) for prompt, limit in zip(PROMPTS, [2, 30, 30], strict=True)], 3)
    assert next(finished)[0] == 0
    with torch.no_grad():
        getattr(pair, poisoned).lm_head.weight[7] = torch.nan
    with pytest.raises(HybridError, match=f"the {role} model produced NaN"):
        next(finished)


def test_infinite_steering_is_an_error(pair: Pair, steering: Steering) -> None:
    endless = replace(steering, bias=torch.full_like(steering.bias, torch.inf))
    with pytest.raises(HybridError, match="the steered base model produced NaN"):
        decoder_of(pair, endless).generate(PROMPTS, 8)
