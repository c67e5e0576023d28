"""The embedded pair on a real server: the tokens of every arm are those of the models here."""

from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.models.ndif.client import NdifModel, Server
from tests.remote.conftest import LocalNdif
from tests.remote.embedded_pair import decode, decoder_of, here, requests, there
from tests.tolerances import approx

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("arm", ARMS)
def test_log_likelihoods(ndif: LocalNdif, arm: str) -> None:
    asked = requests(4, 1)
    prompts = [request.prompt for request in asked]
    texts = [here("base").tokenizer.encode(text) for text in (" 12", " First we add.", "x", " The answer is 5.")]
    pair, remote = (here("base"), here("thinking")), (there(ndif.host, "base"), there(ndif.host, "thinking"))
    found, expected = (decoder_of(models, arm).score(prompts, texts) for models in (remote, pair))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [total for total, _ in found] == approx([total for total, _ in expected], terms=10)


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
    with pytest.raises(
        HybridError, match=r"(cannot run|failed to start) the base model.*(deploy|Error starting model)"
    ):
        NdifModel.at(Server(ndif.host), str(tmp_path), None, here("base").tokenizer, "base")
