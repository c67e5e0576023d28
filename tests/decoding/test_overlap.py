"""The base model drafts on while the thinking model verifies: the same tokens, in fewer rounds."""

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

from lm_eval_hybrid.decoding.batch import Worker
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.local import LocalDrafter, LocalVerifier
from lm_eval_hybrid.decoding.policy import ARMS, policy_for
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
    check(pair_of("llama", 2), policy_for(arm, DEFAULTS), new=15, overlap=True)


@pytest.mark.parametrize("windows", [(1,), (0,), (8, 0, 1)], ids=str)
def test_windows(windows: tuple[int, ...]) -> None:
    """Tokens drafted beyond the opening must not push the residuals that steering needs out of the ring."""
    check(pair_of("qwen2", 0), dataclasses.replace(DEFAULTS, windows=windows), new=20, overlap=True)


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
    decoder = decoder_of(pair, steering, DEFAULTS, longest_draft=longest_draft, overlap=True)
    for request, answer in zip(requests, answers_of(decoder, requests, slots), strict=True):
        assert_equal(answer, naive(pair, steering, DEFAULTS, request), DEFAULTS)


@pytest.mark.parametrize("longest_draft", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_a_large_thinking_model(longest_draft: int) -> None:
    """While it verifies, the base drafts as far as it ever does; much is rolled back."""
    pair = pair_of("llama", 4, width=96, layers=6)
    policy = dataclasses.replace(DEFAULTS, windows=(1, 8))
    decoder = decoder_of(pair, random_steering(pair), policy, overlap=True)
    assert decoder._context.draft_length.overlapped_steps == 16
    check(pair, policy, new=25, overlap=True, longest_draft=longest_draft)


def test_a_thinking_model_on_a_server() -> None:
    """Overlap is the default there."""
    decoder = remote_decoder_of(pair_of("llama", 0), random_steering(pair_of("llama", 0)), DEFAULTS, (False, True))
    assert decoder._context.overlap
    check(pair_of("llama", 0), DEFAULTS, decoder=remote_decoder_of, sides=(False, True), new=15)


def test_overlap_gains_more_tokens_for_the_cost() -> None:
    """As costs are counted: drafting steps during a verification are free."""
    ratios = {}
    for overlap in (False, True):
        pair = agreeing()
        decoder = decoder_of(pair, random_steering(pair), DEFAULTS, overlap=overlap)
        decoder.generate(PROMPTS, 60)
        ratios[overlap] = decoder._context.draft_length.tokens_per_step
    assert ratios[True] > ratios[False] * 1.05


def test_both_models_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither finishes its part of a round before the other has begun."""
    both = threading.Barrier(2, timeout=60)

    def met(whole: Any) -> Any:
        def meeting(*arguments: Any) -> Any:
            both.wait()
            return whole(*arguments)

        return meeting

    monkeypatch.setattr(LocalDrafter, "continue_drafting", met(LocalDrafter.continue_drafting))
    monkeypatch.setattr(LocalVerifier, "verify", met(LocalVerifier.verify))
    check(pair_of("llama", 0), DEFAULTS, PROMPTS[:2], new=5, overlap=True)


@pytest.mark.parametrize("failing", [True, False], ids=["thinking", "base"])
def test_an_error_of_either_waits_for_the_other(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reading = LocalSequences.read, []

    def read(self: LocalSequences, tokens: Tensor, counts: Sequence[int] | None = None) -> Any:
        thinking = counts is not None
        reading.append(thinking)
        if True in reading and thinking is failing:
            raise RuntimeError("this model failed")
        return whole(self, tokens, counts)

    monkeypatch.setattr(LocalSequences, "read", read)
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, overlap=True)
    with pytest.raises(RuntimeError, match="this model failed"):
        decoder.generate(PROMPTS, 20)
    monkeypatch.undo()
    assert decoder.generate(PROMPTS, 3)


def test_no_thread_is_left() -> None:
    pair = pair_of("llama", 0)
    decoder = decoder_of(pair, random_steering(pair), DEFAULTS, overlap=True)
    stream = decoder.stream([Request(prompt, limit) for prompt, limit in zip(PROMPTS, [2, 30, 30, 30], strict=True)], 4)
    next(stream)
    assert _workers() == 1
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "verification":
            thread.join(timeout=20)
    assert _workers() == 0


def _workers() -> int:
    return sum(thread.name == "verification" for thread in threading.enumerate())


def test_an_interrupted_interpreter_does_not_wait_for_the_worker() -> None:
    """A server that does not answer must not block exit."""
    program = (
        "import time; from lm_eval_hybrid.decoding.batch import Worker; worker = Worker(); "
        "worker.submit(lambda: time.sleep(100)); raise KeyboardInterrupt"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert b"KeyboardInterrupt" in ended.stderr


def test_the_worker_keeps_no_result() -> None:
    worker = Worker()

    class Large:
        pass

    seen = [weakref.ref(worker.submit(Large).result(timeout=20))]
    worker.submit(int).result(timeout=20)
    assert seen[0]() is None
    worker.close()


def test_models_on_one_device_take_turns() -> None:
    pair = pair_of("llama", 0)
    base, thinking = (LocalBackend(model, pair.tokenizer) for model in (pair.base, pair.thinking))
    steering = of_package(random_steering(pair))
    assert HybridDecoder(base, thinking, steering, DEFAULTS)._context.overlap is False
    thinking.device = torch.device("meta")
    assert HybridDecoder(base, thinking, steering, DEFAULTS)._context.overlap
    assert HybridDecoder(base, thinking, steering, policy_for("thinking", DEFAULTS))._context.overlap is False
