"""Requests to a server that fails in every possible way."""

import socket
from typing import Any

import pytest
import torch
from nnsight.modeling.transformers import TransformersModel
from nnsight.ndif import register

from lm_eval_hybrid import portable
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.ndif import client as server
from lm_eval_hybrid.models.ndif.client import Connection, Server, Traffic, run_with_retries
from lm_eval_hybrid.portable import programs
from tests.models.ndif.double import (
    Double,
    Reply,
    answers,
    fails,
    frames,
    goes,
    is_silent,
    refuses,
    saved,
    says,
    sends,
    serving,
)
from tests.tiny_system import tiny_model, tiny_tokenizer

ANSWER = {"tokens": torch.arange(6).reshape(2, 3), "places": [1, 2], "none": None}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSES", (0.01, 0.02))


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    register(portable)
    return TransformersModel(tiny_model(0), tokenizer=tiny_tokenizer(), task="text-generation")


def describe(model: TransformersModel, at: Server, traffic: Traffic | None = None) -> dict[str, Any]:
    """The server's answer to `programs.describe`."""
    traffic = traffic or Traffic()
    program, given = programs.describe, {"names": ("model_type",)}

    def attempt() -> dict[str, Any]:
        with model.session(backend=Connection(at, "a model", {}, traffic)):
            answer = program(model, "model.layers", given)
            answer.save()
        return answer

    return run_with_retries(at, "base", traffic, attempt)


def at(double: Double, **options: Any) -> Server:
    return Server(double.host, **{"timeout": 2.0, "patience": 20.0, **options})


@pytest.mark.parametrize("at_once", [True, False], ids=["on the socket", "by address"])
def test_an_answer(model: TransformersModel, at_once: bool) -> None:
    traffic = Traffic()
    with serving(answers(ANSWER, at_once)) as double:
        found = describe(model, at(double, key="a key"), traffic)
    assert found.keys() == ANSWER.keys()
    assert torch.equal(found["tokens"], ANSWER["tokens"])
    assert found["places"] == ANSWER["places"]
    assert (traffic.requests, traffic.retries) == (1, 0)
    assert traffic.sent > 100
    assert traffic.received > 100
    assert traffic.seconds > 0
    assert double.headers[0]["ndif-api-key"] == "a key"
    assert Traffic.total([traffic, Traffic(requests=2, seconds=1.0), Traffic(retries=3)]).requests == 3
    assert traffic.pop().requests == 1
    assert traffic == Traffic()


@pytest.mark.parametrize(
    "fault",
    [
        goes,
        says("not JSON"),
        says('{"status": "unheard of"}'),
        fails("The model was moved while this request was running"),
        refuses(503, "Service temporarily unavailable"),
        refuses(500, "Internal Server Error"),
        sends(saved({"answer": ANSWER})[:-40]),
        frames(b"cut off"),
    ],
    ids=["dropped", "garbage", "unknown state", "moved", "503", "500", "half an answer", "half a frame"],
)
def test_transient_faults_are_retried(model: TransformersModel, fault: Reply, caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic()
    with serving(fault, fault, answers(ANSWER)) as double:
        assert describe(model, at(double), traffic)["places"] == ANSWER["places"]
    assert (traffic.requests, traffic.retries) == (1, 2)
    assert caplog.text.count("retrying in") == 2


def test_silence_is_retried(model: TransformersModel) -> None:
    traffic = Traffic()
    with serving(is_silent, answers(ANSWER)) as double:
        assert describe(model, at(double, timeout=0.3), traffic)["places"] == ANSWER["places"]
    assert traffic.retries == 1


def test_a_server_that_comes_up_late(model: TransformersModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    down = Server(f"http://127.0.0.1:{port}", timeout=1, patience=0.2)
    with pytest.raises(HybridError, match=r"the base model at .* did not answer within 0.2 s.*: ConnectionRefused"):
        describe(model, down)
    with serving(answers(ANSWER), port=port) as double:
        assert describe(model, at(double))["places"] == ANSWER["places"]


def test_patience_ends(model: TransformersModel) -> None:
    with serving(goes) as double, pytest.raises(HybridError, match=r"did not answer within 1 s and \d+ attempts"):
        describe(model, at(double, patience=1.0))
    assert len(double.headers) > 2


@pytest.mark.parametrize(
    ("fault", "named", "advice"),
    [
        (refuses(401, "Invalid API key"), "Invalid API key", "set NDIF_API_KEY"),
        (refuses(403, "This key may not use the model"), "may not use", "set NDIF_API_KEY"),
        (refuses(400, "Client version 0.8.1 is below the minimum 0.9.0"), "below the minimum", "install the release"),
        (refuses(404, "no such model"), "no such model", "check that it serves this model"),
        (fails("Could not deploy this model to the cluster: no weights\nTraceback ..."), "no weights", "serves"),
        (fails("Traceback (most recent call last):\n  File ...\nKeyError: 'x'"), "KeyError: 'x'", "serves"),
    ],
    ids=["401", "403", "version", "404", "cannot be loaded", "its own error"],
)
def test_refusals_are_raised_at_once(model: TransformersModel, fault: Reply, named: str, advice: str) -> None:
    with serving(fault) as double, pytest.raises(HybridError) as refused:
        describe(model, at(double))
    assert named in str(refused.value)
    assert advice in str(refused.value)
    assert double.host in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(double.headers) == 1


def test_a_model_that_starts_late(model: TransformersModel) -> None:
    fault = fails("Error starting model. Please try again later. Sorry for the inconvenience.")
    with serving(*[fault] * 4, answers(ANSWER)) as double:
        assert describe(model, at(double))["places"] == ANSWER["places"]
    with serving(*[fault] * 4, goes, *[fault] * 4, answers(ANSWER)) as double:
        assert describe(model, at(double))["places"] == ANSWER["places"]


def test_a_model_that_never_starts(model: TransformersModel) -> None:
    with serving(fails("Error starting model. Please try again later.")) as double:
        with pytest.raises(
            HybridError, match=r"failed to start the base model 5 times in a row: .*Error starting model"
        ):
            describe(model, at(double))
        assert len(double.headers) == 5


def test_the_server_runs_out_of_memory(model: TransformersModel) -> None:
    with (
        serving(fails("Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried ...")) as double,
        pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"),
    ):
        describe(model, at(double))


class Bomb:
    """Would print, unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("gone off",)


@pytest.mark.parametrize("reply", [sends(saved({"answer": Bomb()})), frames(saved({"status": Bomb()}))])
def test_code_in_an_answer_is_not_run(
    model: TransformersModel, reply: Reply, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(reply) as double, pytest.raises(HybridError, match=r"other data than tensors.*builtins\.print"):
        describe(model, at(double))
    assert "gone off" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"host": "ndif.example"}, "http:// or https://"),
        ({"host": "http://h", "timeout": 0.0}, "ndif_timeout=0.0 is not above 0"),
        ({"host": "http://h", "patience": float("nan")}, "ndif_patience=nan is not above 0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(HybridError, match=named):
        Server(**options)
