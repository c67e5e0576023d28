"""The embedded pair on a real server: the tokens of every arm are those of the models here."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_hybrid import paths
from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.backends.ndif.model import NdifModel
from lm_eval_hybrid.backends.ndif.server import Server
from lm_eval_hybrid.decoding.arms import ARMS
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.request import Prompt, Request
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.decoding.steering import Steering
from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.harness.arguments import HybridArguments
from tests.remote.conftest import LocalNdif

pytestmark = pytest.mark.slow


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


def decode(models: tuple[Any, Any], arm: str, asked: list[Request], slots: int) -> dict[int, Any]:
    """By index: tokens, and what the records say but for the last digits of numbers."""
    ours = HybridArguments(arm=arm)
    suite = ours.suite()
    policy = ours.policy(suite.manifest.steering)
    decoder = HybridDecoder(models[0], models[1], Steering.from_suite(suite), policy)
    return {
        index: [
            replace(record, coefficient=None, thinking_logprob=None, base_logprob=None, thinking_choice_logprob=None)
            for record in answer.records
        ]
        for index, answer in decoder.stream(asked, slots)
    }


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm(ndif: LocalNdif, arm: str) -> None:
    asked = requests(4, 100)
    remote = there(ndif.host, "base"), there(ndif.host, "thinking")
    assert decode(remote, arm, asked, 3) == decode((here("base"), here("thinking")), arm, asked, 4)


@pytest.mark.parametrize("remote", ["base", "thinking"])
def test_one_side_here(ndif: LocalNdif, remote: str) -> None:
    asked = requests(3, 60)
    models = tuple(there(ndif.host, name) if name == remote else here(name) for name in ("base", "thinking"))
    assert decode(models, "hybrid", asked, 3) == decode((here("base"), here("thinking")), "hybrid", asked, 3)


def test_sampled(ndif: LocalNdif) -> None:
    asked = requests(2, 60, Sampling(temperature=0.7, top_p=0.9, seed=4))
    remote = there(ndif.host, "base"), there(ndif.host, "thinking")
    assert decode(remote, "hybrid", asked, 2) == decode((here("base"), here("thinking")), "hybrid", asked, 2)


def test_one_document_costs_few_requests(ndif: LocalNdif) -> None:
    """At most 0.35 requests a token where the models disagree at every tenth token."""
    base, thinking = there(ndif.host, "base"), there(ndif.host, "thinking")
    before = base.traffic.requests + thinking.traffic.requests
    records = decode((base, thinking), "hybrid", requests(2, 200), 1).values()
    tokens = sum(map(len, records))
    assert base.traffic.requests + thinking.traffic.requests - before <= 0.35 * tokens
    assert sum(record.steered for answer in records for record in answer) > 0.05 * tokens


def test_a_model_that_cannot_be_loaded_there(ndif: LocalNdif, tmp_path: Path) -> None:
    here("base").config.save_pretrained(tmp_path)  # and no weights
    with pytest.raises(HybridError, match=r"the base model must run at .*; found: .*deploy"):
        NdifModel.at(Server(ndif.host), str(tmp_path), None, here("base").tokenizer, "base")
