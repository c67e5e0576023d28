"""The embedded pair, here and on a server."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.models.local import LocalBackend
from lm_eval_hybrid.models.ndif.client import NdifModel, Server


@cache
def here(name: str) -> LocalBackend:
    folder = paths.embedded_dir() / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return LocalBackend(model, AutoTokenizer.from_pretrained(folder))


@cache
def there(host: str, name: str) -> NdifModel:
    server = Server(host, timeout=60, patience=120)
    return NdifModel.at(server, str(paths.embedded_dir() / name), None, here(name).tokenizer, name)


def requests(count: int, limit: int, sampling: Sampling | None = None) -> list[Request]:
    lines = (paths.embedded_dir() / "gsm8k_embedded.jsonl").read_text().splitlines()[:count]
    found = []
    for text in [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]:
        prompt = Prompt(*(here(name).tokenizer(text)["input_ids"] for name in ("base", "thinking")))
        found.append(Request(prompt, limit, ("Question:",), sampling))
    return found


def decoder_of(models: tuple[Any, Any], arm: str) -> HybridDecoder:
    """The embedded bundle, of these models."""
    ours = HybridArguments(arm=arm)
    suite = ours.suite()
    policy = ours.policy(suite.manifest.steering)
    return HybridDecoder(models[0], models[1], Steering.from_suite(suite), policy)


def decode(
    models: tuple[Any, Any],
    arm: str,
    asked: list[Request],
    slots: int,
    finished: Callable[[int], None] = lambda count: None,
) -> dict[int, Any]:
    """By index: tokens, and what the records say but for the last digits of numbers.

    Args:
        finished: told how many answers there are, as they come.
    """
    answers = {}
    for index, answer in decoder_of(models, arm).stream(asked, slots):
        answers[index] = [
            replace(record, coefficient=None, thinking_logprob=None, base_logprob=None, thinking_choice_logprob=None)
            for record in answer.records
        ]
        finished(len(answers))
    return answers
