"""The base drafting on while the thinking model reads: the same tokens, in fewer rounds, at the same time."""

import copy
import dataclasses
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.decoding.arms import ARMS, policy_for
from lm_eval_hybrid.decoding.aside import Aside
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.local import LocalBase, LocalThinking
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.models.local import LocalBackend, LocalSequences
from tests.decoding.comparing import (
    DEFAULTS,
    PROMPTS,
    answers_of,
    assert_equal,
    check,
    decoder_of,
    naive,
    of_package,
    pair_of,
    remote_decoder_of,
)
from tests.oracle.models import Pair, random_prompts, random_steering


def agreeing() -> Pair:
    """Two models that never disagree."""
    pair = pair_of("llama", 0)
    return dataclasses.replace(pair, thinking=copy.deepcopy(pair.base))


@pytest.mark.parametrize("arm", ARMS)
def test_arms(arm: str) -> None:
    check(pair_of("llama", 2), policy_for(arm, DEFAULTS), new=15, meanwhile=True)


@pytest.mark.parametrize("windows", [(1,), (0,), (8, 0, 1)], ids=str)
def test_windows(windows: tuple[int, ...]) -> None:
    """What is steered is behind what was drafted beyond: the residuals there must still be kept."""
    check(pair_of("qwen2", 0), dataclasses.replace(DEFAULTS, windows=windows), new=20, meanwhile=True)


@pytest.mark.parametrize(("longest_draft", "slots"), [(1, 4), (5, 9), (16, 1)])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7, top_k=8, top_p=0.9, seed=5)], ids=["", "sampled"])
def test_uneven_requests_come_and_go(longest_draft: int, slots: int, sampling: Sampling | None) -> None:
    pair = pair_of("llama", 0)
    prompts = [Prompt(ids, [*range(5, 5 + i % 3), *ids]) for i, ids in enumerate(random_prompts(9, seed=37))]
    requests = [
        Request(prompt, limit, ("the", "0\n"), sampling)
        for prompt, limit in zip(prompts, [25, 9, 30, 1, 12, 0, 40, 3, 18], strict=True)
    ]
    steering = random_steering(pair)
    decoder = decoder_of(pair, steering, DEFAULTS, longest_draft=longest_draft, meanwhile=True)
    for request, answer in zip(requests, answers_of(decoder, requests, slots), strict=True):
        assert_equal(answer, naive(pair, steering, DEFAULTS, request), DEFAULTS)


@pytest.mark.parametrize("longest_draft", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_a_large_thinking_model(longest_draft: int) -> None:
    """While it reads the base drafts as far as it ever does; much is taken back."""
    pair = pair_of("llama", 4, width=96, layers=6)
    policy = dataclasses.replace(DEFAULTS, windows=(1, 8))
    decoder = decoder_of(pair, random_steering(pair), policy, meanwhile=True)
    assert decoder._system.pace.meanwhile == 16
    check(pair, policy, new=25, meanwhile=True, longest_draft=longest_draft)


def test_a_thinking_model_on_a_server() -> None:
    """There the base goes on by itself."""
    decoder = remote_decoder_of(pair_of("llama", 0), random_steering(pair_of("llama", 0)), DEFAULTS, (False, True))
    assert decoder._system.meanwhile
    check(pair_of("llama", 0), DEFAULTS, decoder=remote_decoder_of, sides=(False, True), new=15)


def test_more_tokens_for_the_cost() -> None:
    """As the pace counts: steps of the base while the thinking model reads cost nothing more."""
    ratios = {}
    for meanwhile in (False, True):
        pair = agreeing()
        decoder = decoder_of(pair, random_steering(pair), DEFAULTS, meanwhile=meanwhile)
        decoder.generate(PROMPTS, 60)
        ratios[meanwhile] = decoder._system.pace.ratio
    assert ratios[True] > ratios[False] * 1.05


def test_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ends its part of a round before the other has begun."""
    both = threading.Barrier(2, timeout=60)

    def met(whole: Any) -> Any:
        def meeting(*arguments: Any) -> Any:
            both.wait()
            return whole(*arguments)

        return meeting

    monkeypatch.setattr(LocalBase, "go_on", met(LocalBase.go_on))
    monkeypatch.setattr(LocalThinking, "verify", met(LocalThinking.verify))
    check(pair_of("llama", 0), DEFAULTS, PROMPTS[:2], new=5, meanwhile=True)


@pytest.mark.parametrize("failing", [True, False], ids=["thinking", "base"])
def test_an_error_of_either_waits_for_the_other(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reading = LocalSequences.read, []

    def read(self: LocalSequences, tokens: Tensor, counts: Sequence[int] | None = None) -> Any:
        thinking = counts is not None
        reading.append(thinking)
        if True in reading and thinking is failing:
            raise RuntimeError("this one")
        return whole(self, tokens, counts)

    monkeypatch.setattr(LocalSequences, "read", read)
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, meanwhile=True)
    with pytest.raises(RuntimeError, match="this one"):
        decoder.generate(PROMPTS, 20)
    monkeypatch.undo()
    assert decoder.generate(PROMPTS, 3)


def test_no_thread_is_left() -> None:
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, meanwhile=True)
    stream = decoder.stream([Request(prompt, limit) for prompt, limit in zip(PROMPTS, [2, 30, 30, 30], strict=True)], 4)
    next(stream)
    assert _asides() == 1
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "aside":
            thread.join(timeout=20)
    assert _asides() == 0


def _asides() -> int:
    return sum(thread.name == "aside" for thread in threading.enumerate())


def test_an_interpreter_that_is_interrupted_does_not_wait() -> None:
    """As for a server that does not answer."""
    program = (
        "import time; from lm_eval_hybrid.decoding.aside import Aside; aside = Aside(); "
        "aside.run(lambda: time.sleep(100)); raise KeyboardInterrupt"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert b"KeyboardInterrupt" in ended.stderr


def test_what_came_of_it_is_not_kept() -> None:
    aside = Aside()

    class Large:
        pass

    seen = [weakref.ref(aside.run(Large).result(timeout=20))]
    aside.run(int).result(timeout=20)
    assert seen[0]() is None
    aside.close()


def test_models_on_one_device_take_turns() -> None:
    pair = pair_of("llama", 0)
    base, thinking = (LocalBackend(model, pair.tokenizer) for model in (pair.base, pair.thinking))
    steering = of_package(random_steering(pair))
    assert HybridDecoder(base, thinking, steering, DEFAULTS)._system.meanwhile is False
    thinking.device = torch.device("meta")
    assert HybridDecoder(base, thinking, steering, DEFAULTS)._system.meanwhile
    assert HybridDecoder(base, thinking, steering, policy_for("thinking", DEFAULTS))._system.meanwhile is False
