"""The cached, batched, drafting decoder against the naive loop of tests/oracle: token for token, record for record."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.policy import ARMS, policy_for
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.models.local import LocalSequences
from tests.decoding.comparing import DEFAULTS, PROMPTS, answers_of, assert_equal, check, decoder_of, naive, pair_of
from tests.oracle.models import FAMILIES, mixed_pair, random_prompts, random_steering

TWICE = ["llama", pytest.param("qwen2", marks=pytest.mark.slow)]
ONE = {"coefficients": (1.5,), "windows": (8,)}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("windows", [(1,), (8,), (0,), (8, 0, 1)], ids=str)
def test_windows(family: str, windows: tuple[int, ...]) -> None:
    answers = check(pair_of(family, 0), dataclasses.replace(DEFAULTS, windows=windows))
    # The comparison means something only where both kinds of step occur.
    assert 0 < sum(a.steered_fraction for a in answers) < len(answers)
    assert sum(a.changed_fraction for a in answers) > 0


@pytest.mark.parametrize("family", TWICE)
@pytest.mark.parametrize("gate", ["disagreement", "never", "always", "random"])
@pytest.mark.parametrize("select", ["guardrail", "fixed", "mlp", "random"])
def test_gates_and_selectors(family: str, gate: str, select: str) -> None:
    change = ONE if select in ("fixed", "mlp") else {}
    check(pair_of(family, 1), dataclasses.replace(DEFAULTS, gate=gate, select=select, **change), PROMPTS[:2])


@pytest.mark.parametrize("family", TWICE)
@pytest.mark.parametrize("arm", ARMS)
def test_arms(family: str, arm: str) -> None:
    check(pair_of(family, 2), policy_for(arm, DEFAULTS))


@pytest.mark.parametrize("arm", ["bias-only", "random-category", "random-select"])
def test_arms_of_a_bundle_with_a_network(arm: str) -> None:
    """The bias alone has no head of its own: its coefficient is 1."""
    check(pair_of("llama", 2), policy_for(arm, dataclasses.replace(DEFAULTS, select="mlp", **ONE)))


@pytest.mark.parametrize("family", FAMILIES)
def test_architectures(family: str) -> None:
    answers = check(pair_of(family, 0), DEFAULTS)
    assert 0 < sum(a.steered_fraction for a in answers) < len(answers)


@pytest.mark.parametrize("families", [("llama", "gpt2"), ("gpt_neox", "qwen2"), ("gemma2", "llama")], ids="-".join)
def test_pairs_of_two_architectures(families: tuple[str, str]) -> None:
    answers = check(mixed_pair(*families), DEFAULTS)
    assert 0 < sum(a.steered_fraction for a in answers) < len(answers)


@pytest.mark.parametrize("layer", [0, 3])
def test_first_and_last_layer(layer: int) -> None:
    check(pair_of("llama", 0), DEFAULTS, layer=layer)


def test_a_wider_and_deeper_thinking_model() -> None:
    check(pair_of("llama", 4, width=48, layers=6), DEFAULTS)


def test_the_prompts_may_differ() -> None:
    prompts = [Prompt(p.base_ids, [*range(5, 5 + i), *p.thinking_ids]) for i, p in enumerate(PROMPTS)]
    check(pair_of("qwen2", 0), DEFAULTS, prompts)


@pytest.fixture(scope="module")
def uneven() -> list[Request]:
    """More requests than slots, of different prompts, lengths and ends."""
    prompts = [Prompt(ids, [*range(5, 5 + i % 3), *ids]) for i, ids in enumerate(random_prompts(9, seed=37))]
    stops = [("\n\n", "the", "q"), ("an", "0\n"), ()] * 3
    return [Request(*each) for each in zip(prompts, [25, 9, 30, 1, 12, 0, 40, 3, 18], stops, strict=True)]


@pytest.fixture(scope="module")
def expected(uneven: list[Request]) -> list[dict[str, Any]]:
    pair = pair_of("llama", 0)
    return [naive(pair, random_steering(pair), DEFAULTS, request) for request in uneven]


@pytest.mark.parametrize(("longest_draft", "slots"), [(1, 4), (2, 9), (5, 4), (16, 1), (16, 9)])
def test_neither_draft_length_nor_slots_change_a_token(
    uneven: list[Request], expected: list[dict[str, Any]], longest_draft: int, slots: int
) -> None:
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, longest_draft=longest_draft)
    for answer, theirs in zip(answers_of(decoder, uneven, slots), expected, strict=True):
        assert_equal(answer, theirs, DEFAULTS)
    assert {answer["finish"] for answer in expected} == {"stop", "length", "eos"}


def test_drafts_grow_where_the_models_agree() -> None:
    """Otherwise all comparisons here would be of drafts of one token."""
    pair = pair_of("llama", 0)
    pair = dataclasses.replace(pair, thinking=pair.base)
    passes = {"base": 0, "thinking": 0}

    class Counted(LocalSequences):
        def read(self, tokens: Tensor, counts: Any = None) -> Any:
            passes["thinking" if counts else "base"] += 1
            return super().read(tokens, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval_hybrid.models.local.LocalSequences", Counted)
        check(pair, DEFAULTS, PROMPTS[:2], new=40)
    assert passes["base"] <= 40 + 16
    assert passes["thinking"] < passes["base"] / 3


def test_answers_are_yielded_as_they_are_finished(uneven: list[Request]) -> None:
    pair = pair_of("llama", 0)
    order = [index for index, _ in decoder_of(pair, random_steering(pair), DEFAULTS).stream(uneven, 4)]
    assert sorted(order) == list(range(len(uneven)))
    assert order[0] == 5, "its limit is 0"
    assert order != sorted(order)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("failing", ["read", "insert", "steered", "select"])
def test_running_out_of_memory_loses_no_token(
    uneven: list[Request],
    expected: list[dict[str, Any]],
    failing: str,
    overlap: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With more than two rows, every call from the third on fails."""
    pair, calls = pair_of("llama", 0), []
    whole = getattr(LocalSequences, failing)

    def short(self: LocalSequences, *arguments: Any) -> Any:
        calls.append(1)
        if len(self._lengths) > 2 and len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *arguments)

    monkeypatch.setattr(LocalSequences, failing, short)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, overlap=overlap)
    finished: Iterator[Any] = decoder.stream(uneven, 4)
    for index, answer in finished:
        assert_equal(answer, expected[index], DEFAULTS)
    assert len(calls) > 2


def test_running_out_of_memory_with_one_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LocalSequences, "read", full)
    pair = pair_of("llama", 0)
    with pytest.raises(torch.OutOfMemoryError):
        decoder_of(pair, random_steering(pair), DEFAULTS).generate(PROMPTS, 5)


@pytest.mark.parametrize("arm", ["hybrid", "base", "thinking"])
def test_stop_strings_and_ends(arm: str, uneven: list[Request]) -> None:
    pair, policy = pair_of("llama", 0), policy_for(arm, DEFAULTS)
    steering = random_steering(pair)
    for request, answer in zip(uneven, answers_of(decoder_of(pair, steering, policy), uneven, 9), strict=True):
        assert_equal(answer, naive(pair, steering, policy, request), policy)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_long_answers(family: str) -> None:
    """Long enough for rounding errors to add up, caches to grow and rows to be dropped."""
    check(pair_of(family, 6), DEFAULTS, [Prompt(ids, ids) for ids in random_prompts(8, seed=6)], new=150)
