"""The naive loop against facts that can be checked without it."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracle.models import EOS_ID, FAMILIES, PAD_ID, Pair, random_prompts, random_steering, tiny_pair
from tests.oracle.naive import (
    NaivePolicy,
    NaiveSteering,
    blocks_of,
    category_of,
    draw,
    mlp_coefficient,
    naive_generate,
    preference,
    random_directions,
    read,
    trim,
)
from tests.tolerances import approx, assert_close

PROMPT = [5, 30, 12, 44, 9]
QUICK = ("llama", "gpt2", "mistral")
FAMILY = [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
SHAPES = [
    ("llama", 48, 6),
    *((family, 0, 0) for family in QUICK),
    *(pytest.param(family, 0, 0, marks=pytest.mark.slow) for family in FAMILIES if family not in QUICK),
    pytest.param("qwen2", 48, 5, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair("llama", seed=0)


@pytest.fixture(scope="module")
def steering(pair: Pair) -> NaiveSteering:
    return random_steering(pair)


def run(
    pair: Pair, steering: NaiveSteering | None, policy: NaivePolicy, length: int = 12, **kwargs: Any
) -> dict[str, Any]:
    ids = kwargs.pop("ids", PROMPT)
    return naive_generate(
        pair.base,
        pair.thinking,
        None,
        steering,
        policy,
        ids,
        ids,
        length,
        decode=pair.tokenizer.decode,
        **kwargs,
    )


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], length: int, use_cache: bool = True) -> list[int]:
    """What transformers itself generates, without EOS and padding."""
    row = torch.tensor([ids])
    settings = {"max_new_tokens": length, "do_sample": False, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    out = model.generate(row, attention_mask=torch.ones_like(row), use_cache=use_cache, **settings)
    new = out[0, len(ids) :].tolist()
    return new[: new.index(EOS_ID)] if EOS_ID in new else new


@contextmanager
def adding(model: torch.nn.Module, layer: int, direction: Tensor, window: int) -> Iterator[None]:
    """A plain torch hook that adds `direction` after `layer` on the last `window` positions (0 = all)."""

    def hook(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        mask = torch.zeros(output.shape[1], 1)
        mask[-window:] = 1  # [-0:] is everything
        return output + mask * direction

    handle = blocks_of(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# Arms with a known answer


@pytest.mark.parametrize(("family", "width", "layers"), SHAPES)
def test_gate_never_is_the_base_model(family: str, width: int, layers: int) -> None:
    pair = tiny_pair(family, seed=1, width=width, layers=layers)
    for ids in random_prompts(3, seed=1):
        result = naive_generate(pair.base, None, None, None, NaivePolicy(gate="never"), ids, ids, 16, eos_id=EOS_ID)
        assert result["tokens"] == greedy(pair.base, ids, 16)
        assert not any(record["steered"] or record["changed"] for record in result["records"])
        assert all(record["thinking_logprob"] is None for record in result["records"])


@pytest.mark.parametrize(("family", "width", "layers"), SHAPES)
def test_thinking_arm_and_takeover_are_the_thinking_model(family: str, width: int, layers: int) -> None:
    pair = tiny_pair(family, seed=2, width=width, layers=layers)
    alone = NaivePolicy(gate="always", emit="thinking")
    takeover = NaivePolicy(gate="disagreement", emit="thinking")  # where both agree, the base's token is y_T too
    for ids in random_prompts(3, seed=2):
        expected = greedy(pair.thinking, ids, 16)
        result = naive_generate(None, pair.thinking, None, None, alone, ids, ids, 16, eos_id=EOS_ID)
        assert result["tokens"] == expected
        assert all(record["steered"] and record["base_choice"] is None for record in result["records"])
        assert run(pair, None, takeover, 16, ids=ids, eos_id=EOS_ID)["tokens"] == expected


@pytest.mark.parametrize("family", FAMILY)
def test_steering_of_zero_is_the_base_model(family: str) -> None:
    pair = tiny_pair(family, seed=3)
    steering = random_steering(pair)
    nothing = replace(steering, bias=0 * steering.bias, vectors=0 * steering.vectors)
    policy = NaivePolicy(gate="always", coefficients=(0.5, 1.0), windows=(1, 0))
    result = run(pair, nothing, policy, eos_id=EOS_ID)
    assert result["tokens"] == greedy(pair.base, PROMPT, 12)
    assert all(record["steered"] and not record["changed"] for record in result["records"])


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("window", [0, 1, 8])
def test_fixed_steering_is_a_constant_added_by_a_hook(family: str, window: int) -> None:
    pair = tiny_pair(family, seed=4)
    steering = random_steering(pair)
    policy = NaivePolicy(gate="always", select="fixed", category="none", coefficients=(1.5,), windows=(window,))
    result = run(pair, steering, policy, 16, eos_id=EOS_ID)
    with adding(pair.base, steering.layer, 1.5 * steering.bias, window):
        expected = greedy(pair.base, PROMPT, 16, use_cache=False)
    assert result["tokens"] == expected
    assert any(record["changed"] for record in result["records"])


def test_every_field_of_a_record_agrees_with_plain_forwards(pair: Pair, steering: NaiveSteering) -> None:
    policy = NaivePolicy(coefficients=(0.5, 1.0, 2.0), windows=(1, 8, 0))
    result = run(pair, steering, policy, 16)
    opened = [record for record in result["records"] if record["steered"]]
    assert opened and len(opened) < len(result["records"])
    for record in result["records"]:
        row = torch.tensor([PROMPT + result["tokens"][: record["position"]]])
        with torch.no_grad():
            base, thinking = pair.base(row).logits[0, -1], pair.thinking(row, output_hidden_states=True)
        logprobs = thinking.logits[0, -1].log_softmax(-1)
        assert record["base_choice"] == int(base.argmax())
        assert record["thinking_choice"] == int(logprobs.argmax())
        assert record["steered"] == (record["base_choice"] != record["thinking_choice"])
        assert record["changed"] == (record["token"] != record["base_choice"])
        assert record["thinking_logprob"] == approx(float(logprobs[record["token"]]))
        assert record["text"] == pair.tokenizer.decode([record["token"]])
        if not record["steered"]:
            assert record["category"] is record["behavior"] is record["coefficient"] is record["window"] is None
            continue
        category = category_of(steering, thinking.hidden_states[steering.sae_layer + 1][0, -1])
        assert record["category"] == category
        assert record["behavior"] == f"behavior-{category}"
        best = -math.inf
        for coefficient in policy.coefficients:
            for window in policy.windows:
                direction = coefficient * (steering.bias + steering.vectors[category])
                with adding(pair.base, steering.layer, direction, window), torch.no_grad():
                    token = int(pair.base(row).logits[0, -1].argmax())
                best = max(best, float(logprobs[token]))
                if (coefficient, window) == (record["coefficient"], record["window"]):
                    assert record["token"] == token
        assert record["thinking_logprob"] == approx(best)


# Selection


def test_ties_go_to_the_smaller_coefficient_then_the_smaller_window_then_the_listed_order() -> None:
    def candidate(coefficient: float, window: int, logprob: float = -1.0) -> dict[str, float]:
        return {"coefficient": coefficient, "window": window, "logprob": logprob}

    listed = [candidate(2, 1), candidate(-1, 0), candidate(-1, 8), candidate(1, 8), candidate(0.1, 1, -1.5)]
    assert min(listed, key=preference) == candidate(-1, 8)
    assert min(reversed(listed), key=preference) == candidate(1, 8)
    assert min([*listed, candidate(9, 0, -0.5)], key=preference) == candidate(9, 0, -0.5)


def test_ties_in_the_loop(pair: Pair, steering: NaiveSteering) -> None:
    policy = NaivePolicy(gate="always", coefficients=(2e-9, 1e-9, -1e-9), windows=(0, 4, 2))
    for record in run(pair, steering, policy)["records"]:
        assert (record["coefficient"], record["window"]) == (1e-9, 2)


def test_random_selection_follows_its_draws(pair: Pair, steering: NaiveSteering) -> None:
    policy = NaivePolicy(gate="always", select="random", coefficients=(0.5, 1.0), windows=(1, 8, 0), seed=5)
    order = [(0.5, 1), (0.5, 8), (0.5, 0), (1.0, 1), (1.0, 8), (1.0, 0)]
    records = run(pair, steering, policy, 20)["records"]
    chosen = [(record["coefficient"], record["window"]) for record in records]
    assert chosen == [order[int(6 * draw(5, "select", index, PROMPT))] for index in range(20)]
    assert len(set(chosen)) > 3


def test_mlp_selection_is_the_network_on_the_unsteered_residual(pair: Pair, steering: NaiveSteering) -> None:
    record = run(pair, steering, NaivePolicy(gate="always", select="mlp", windows=(8,)), 1)["records"][0]
    with torch.no_grad():
        states = pair.base(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    inner = torch.nn.functional.linear(states[steering.layer + 1][0, -1], steering.trunk_weight, steering.trunk_bias)
    outer = torch.nn.functional.linear(torch.nn.functional.gelu(inner), steering.heads_weight, steering.heads_bias)
    expected = torch.nn.functional.softplus(outer[record["category"]])
    assert record["coefficient"] == approx(float(expected))
    hidden = torch.zeros_like(steering.bias)
    silent = replace(steering, trunk_bias=torch.zeros(8))
    # ln(1 + e^b): never below zero.
    assert mlp_coefficient(silent, hidden, 2) == pytest.approx(math.log(1 + math.exp(steering.heads_bias[2])), rel=1e-6)


# Gates, categories, directions


def test_random_gate_follows_its_draws(pair: Pair, steering: NaiveSteering) -> None:
    policy = NaivePolicy(gate="random", gate_rate=0.4, seed=9)
    opened = [record["steered"] for record in run(pair, steering, policy, 24)["records"]]
    assert opened == [draw(9, "gate", index, PROMPT) < 0.4 for index in range(24)]
    assert 0 < sum(opened) < 24
    shut = run(pair, steering, replace(policy, gate_rate=0.0), eos_id=EOS_ID)
    assert shut["tokens"] == greedy(pair.base, PROMPT, 12)
    assert all(record["steered"] for record in run(pair, steering, replace(policy, gate_rate=1.0))["records"])


def test_random_category_follows_its_draws(pair: Pair, steering: NaiveSteering) -> None:
    records = run(pair, steering, NaivePolicy(gate="always", category="random", seed=2), 20)["records"]
    assert [record["category"] for record in records] == [int(5 * draw(2, "category", i, PROMPT)) for i in range(20)]


def test_category_is_that_of_the_normalised_residual(steering: NaiveSteering) -> None:
    hand = replace(
        steering,
        mean=torch.tensor([1.0, 1.0]),
        b_dec=torch.tensor([0.0, 0.5]),
        W_e=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        b_e=torch.tensor([0.0, 0.25]),
    )
    # (4, 5) - mean = (3, 4), of norm 5: x - b_dec = (0.6, 0.3), scores (0.6, 0.55)
    assert category_of(hand, torch.tensor([4.0, 5.0])) == 0
    assert category_of(replace(hand, b_e=torch.tensor([0.0, 0.31])), torch.tensor([4.0, 5.0])) == 1
    tie = replace(hand, W_e=torch.zeros(2, 2), b_e=torch.zeros(2))
    assert category_of(tie, torch.tensor([4.0, 5.0])) == 0


def test_random_directions_keep_the_norms(steering: NaiveSteering) -> None:
    vectors = steering.vectors.clone()
    vectors[3] = 0  # a latent that no behavior names
    bias, drawn = random_directions(replace(steering, vectors=vectors), seed=4)
    assert torch.allclose(bias.norm(), steering.bias.norm())
    assert torch.allclose(drawn.norm(dim=-1), vectors.norm(dim=-1))
    assert abs(float(torch.cosine_similarity(bias, steering.bias, dim=0))) < 0.9
    again, other = random_directions(steering, seed=4)[0], random_directions(steering, seed=5)[0]
    assert torch.equal(bias, again)
    assert not torch.allclose(bias, other)


def test_draws_are_fixed_distinct_and_uniform() -> None:
    assert draw(0, "gate", 0, [1, 2, 3]) == 0x6C8FF7DF3CFFE9DB / 2**64  # made with hashlib by hand
    near = {draw(*arguments) for arguments in [(0, "gate", 0, [1]), (1, "gate", 0, [1]), (0, "select", 0, [1])]}
    near |= {draw(0, "gate", 1, [1]), draw(0, "gate", 0, [2]), draw(0, "gate", 0, [])}
    assert len(near) == 6
    many = torch.tensor([draw(0, "gate", position, [4, 5]) for position in range(4000)], dtype=torch.float64)
    assert float(many.min()) >= 0 and float(many.max()) < 1
    shares = torch.histc(many.float(), bins=10, min=0, max=1) / len(many)
    assert float((shares - 0.1).abs().max()) < 0.02


# Ends


def test_trim_keeps_what_begins_before_the_earliest_stop_string() -> None:
    pieces = ["ab", "c.", "\nQ", ":", "x"]

    def decode(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids)

    assert trim([0, 1, 2, 3], ["\n"], decode) == ("abc.", 2)
    assert trim([0, 1, 2, 3], [".\nQ:"], decode) == ("abc", 2)  # "c." straddles the stop string: kept
    assert trim([0, 1, 2, 3], ["Q", "b"], decode) == ("a", 1)
    assert trim([0, 1], ["ab"], decode) == ("", 0)
    assert trim([0, 1], ["Q", "z"], decode) is None
    assert trim([0, 1], [], decode) is None


def test_a_stop_string_ends_the_text_and_its_tokens_are_not_counted(pair: Pair, steering: NaiveSteering) -> None:
    full = run(pair, steering, NaivePolicy(), 16)
    assert full["finish"] == "length" and len(full["tokens"]) == 16
    texts = [record["text"] for record in full["records"]]
    stop = texts[6] + texts[7]
    cut = full["text"].index(stop)
    stopped = run(pair, steering, NaivePolicy(), 16, stop=["never to be found", stop])
    assert stopped["finish"] == "stop"
    assert stopped["text"] == full["text"][:cut]
    assert stopped["tokens"] == full["tokens"][: len(stopped["tokens"])]
    assert "".join(record["text"] for record in stopped["records"]).startswith(stopped["text"])
    assert run(pair, steering, NaivePolicy(), 8, stop=[stop])["finish"] == "stop"  # at the very last token


def test_eos_ends_and_is_not_kept(pair: Pair, steering: NaiveSteering) -> None:
    full = run(pair, steering, NaivePolicy(), 16)
    eos = full["tokens"][5]
    first = full["tokens"].index(eos)
    ended = run(pair, steering, NaivePolicy(), 16, eos_id=eos)
    assert ended["finish"] == "eos"
    assert ended["tokens"] == full["tokens"][:first]
    assert ended["records"] == full["records"][:first]
    assert run(pair, steering, NaivePolicy(), 0) == {
        "tokens": [],
        "records": [],
        "finish": "length",
        "text": "",
    }


def test_prompts_may_differ_between_the_models(pair: Pair, steering: NaiveSteering) -> None:
    longer = [7, 7, *PROMPT]
    policy = NaivePolicy(gate="always", emit="thinking")
    result = naive_generate(pair.base, pair.thinking, None, steering, policy, PROMPT, longer, 8)
    assert result["tokens"] == greedy(pair.thinking, longer, 8)


# The tiny pairs themselves


@pytest.mark.parametrize(("family", "width", "layers"), SHAPES)
def test_pairs_disagree_at_times_and_steering_bites(family: str, width: int, layers: int) -> None:
    pair = tiny_pair(family, width=width, layers=layers)
    steering = random_steering(pair)
    assert pair.thinking.config.hidden_size == (width or 32)
    assert len(blocks_of(pair.thinking)) == (layers or 4)
    policy = NaivePolicy(coefficients=(0.5, 1.0), windows=(1, 0))
    records = [record for ids in random_prompts(3) for record in run(pair, steering, policy, 24, ids=ids)["records"]]
    steered = [record for record in records if record["steered"]]
    assert 0.1 < len(steered) / len(records) < 0.6
    assert sum(record["changed"] for record in steered) > len(steered) / 4
    assert len(Counter(record["category"] for record in steered)) > 1
    assert len({record["token"] for record in records}) > 10


def test_read_returns_the_residual_after_the_layer(pair: Pair) -> None:
    logits, residual = read(pair.base, PROMPT, 1)
    with torch.no_grad():
        plain = pair.base(torch.tensor([PROMPT]), output_hidden_states=True)
    assert_close(logits, plain.logits[0, -1])
    assert_close(residual, plain.hidden_states[2][0, -1])
    assert not logits.requires_grad


def test_seeds_make_the_models() -> None:
    one, same, other = (tiny_pair("qwen2", seed=seed).thinking.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_tokenizer_joins_pieces_that_hold_newlines(pair: Pair) -> None:
    tokenizer = pair.tokenizer
    text = "the answer: 42.\nand rest\n\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids].count(".\n") == 1
    assert len(ids) < len(text)
    assert tokenizer.eos_token_id == EOS_ID and tokenizer.pad_token_id == PAD_ID
