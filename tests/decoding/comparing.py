"""The decoder and the naive loop of tests/oracle on the same input, compared token for token, record for record."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.modeling.transformers import TransformersModel

from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.records import Generation
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.steering import CoefficientNetwork, SparseEncoder, Steering
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import NdifModel, Traffic
from tests.oracle.models import Pair, random_prompts, random_steering, tiny_pair
from tests.oracle.naive import NaivePolicy, NaiveSteering, naive_generate, naive_score
from tests.oracle.scoring import NaiveSampling
from tests.oracle.tokenizers import CrossedPair
from tests.tolerances import approx

_BROKEN = "\N{REPLACEMENT CHARACTER}"

AnyPair = Pair | CrossedPair

PROMPTS = [Prompt(ids, ids) for ids in random_prompts(4, seed=3)]
DEFAULTS = Policy(coefficients=(0.5, 1.5), windows=(1, 8, 0), gate_rate=0.3, seed=11)


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


def tokenizers_of(pair: AnyPair) -> tuple[Any, Any]:
    """(the base's, the thinking model's)."""
    if isinstance(pair, CrossedPair):
        return pair.base_tokenizer, pair.thinking_tokenizer
    return pair.tokenizer, pair.tokenizer


def decoder_of(pair: AnyPair, steering: NaiveSteering, policy: Policy, **options: Any) -> HybridDecoder:
    ours, theirs = tokenizers_of(pair)
    backends = LocalBackend(pair.base, ours), LocalBackend(pair.thinking, theirs)
    return HybridDecoder(*backends, of_package(steering), policy, **options)


def simulated(model: Any, tokenizer: Any) -> NdifModel:
    """A model as on a server: requests are serialised and read back as there, without this package; run here."""
    wrapped = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    traffic = Traffic()

    def submit(attempt: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        traffic.requests += 1
        return attempt(LocalSimulationBackend(wrapped))

    return NdifModel(wrapped, "simulated", "base", submit, traffic)


def remote_decoder_of(
    pair: AnyPair,
    steering: NaiveSteering,
    policy: Policy,
    sides: tuple[bool, bool] = (True, True),
    **options: Any,
) -> HybridDecoder:
    """The same with its base, its thinking model or both as on a server."""
    models = zip((pair.base, pair.thinking), tokenizers_of(pair), sides, strict=True)
    backends = [simulated(model, words) if remote else LocalBackend(model, words) for model, words, remote in models]
    return HybridDecoder(*backends, of_package(steering), policy, **options)


def answers_of(decoder: HybridDecoder, requests: Sequence[Request], slots: int) -> list[Generation]:
    """Answers in the order of the requests."""
    answers = dict(decoder.stream(requests, slots))
    return [answers[i] for i in range(len(requests))]


def naive(pair: AnyPair, steering: NaiveSteering, policy: Policy, request: Request) -> dict[str, Any]:
    """The naive loop's answer."""
    tokenizers = tokenizers_of(pair)
    # Text is the speaking model's: of ids that both read alike, in a crossed pair, the base's.
    speaker = tokenizers[0] if policy.reads_base else tokenizers[1]
    sampling = request.sampling and NaiveSampling(**dataclasses.asdict(request.sampling))
    return naive_generate(
        pair.base,
        pair.thinking,
        tokenizers,
        steering,
        NaivePolicy(**dataclasses.asdict(policy)),
        request.prompt.base_ids,
        request.prompt.thinking_ids,
        request.limit,
        request.stop,
        lambda ids: speaker.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        speaker.eos_token_id,
        sampling,
    )


def naively_scored(
    pair: AnyPair, steering: NaiveSteering, policy: Policy, prompt: Prompt, continuation: Sequence[int]
) -> tuple[float, bool]:
    """The naive loop's score."""
    plain = NaivePolicy(**dataclasses.asdict(policy))
    models = pair.base, pair.thinking, tokenizers_of(pair), steering, plain
    return naive_score(*models, prompt.base_ids, prompt.thinking_ids, continuation)


def assert_equal(ours: Generation, theirs: dict[str, Any], policy: Policy) -> None:
    """Check tokens, text, end and records; log-probabilities and coefficients up to rounding."""
    records = theirs["records"]
    if _BROKEN in theirs["text"]:
        # Bytes that are no text: which of their tokens a stop string leaves, tokenizers may see differently.
        assert ours.tokens[: len(records)] == tuple(theirs["tokens"][: len(ours.tokens)])
    else:
        assert list(ours.tokens) == theirs["tokens"]
        assert (ours.text, ours.finish) == (theirs["text"], theirs["finish"])
    for mine, naive_record in zip(ours.records, records, strict=_BROKEN not in theirs["text"]):
        expected = dict(naive_record)
        if not policy.reads_thinking:  # the naive loop runs it all the same
            expected |= dict.fromkeys(("thinking_logprob", "thinking_choice", "thinking_choice_logprob"))
        for field in ("thinking_logprob", "base_logprob", "thinking_choice_logprob", "coefficient"):
            mine_value, value = getattr(mine, field), expected.pop(field)
            if value is None or mine_value is None:
                assert mine_value is value
            else:
                assert mine_value == approx(value), field
        # The naive record has the token's text alone; ours ends where the answer does, and waits for whole characters.
        text = expected.pop("text")
        assert text.startswith(mine.text) or not (text + mine.text).isascii()
        assert {field: getattr(mine, field) for field in expected} == expected


def check(
    pair: AnyPair,
    policy: Policy,
    prompts: Sequence[Prompt] = PROMPTS,
    new: int = 10,
    layer: int = 1,
    decoder: Callable[..., HybridDecoder] = decoder_of,
    **options: Any,
) -> list[Generation]:
    """Decode `new` tokens for each prompt as one batch; compare, and return them."""
    steering = random_steering(pair, layer=layer)
    requests = [Request(prompt, new) for prompt in prompts]
    answers = answers_of(decoder(pair, steering, policy, **options), requests, len(requests))
    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)
    return answers
