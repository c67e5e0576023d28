"""A real server that is hurt while it is asked: no answer is another, and what cannot be done is said."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.ndif.client import NdifModel, Server
from tests.remote.conftest import LocalNdif
from tests.remote.embedded_pair import decode, here, requests, there

pytestmark = pytest.mark.slow

KILLS = {10: "model", 30: "api", 50: "redis", 70: "ray", 90: "model"}  # part, by answers that are finished
FOLDER = str(paths.embedded_dir() / "base")
TASKS = ("--tasks", "gsm8k_embedded", "--limit", "12", "--batch_size", "4", "--arms", "hybrid")


def test_five_deaths_in_a_hundred_documents(ndif: LocalNdif) -> None:
    asked = requests(100, 40)
    base, thinking = there(ndif.host, "base"), there(ndif.host, "thinking")
    killed, waiting = [], threading.Semaphore(0)

    def surgeon() -> None:
        for part in KILLS.values():
            waiting.acquire()
            ndif.kill(part)
            killed.append(part)
            ndif.start()

    def finished(count: int) -> None:
        for _ in range(sum(at == count for at in KILLS)):
            waiting.release()

    thread = threading.Thread(target=surgeon, daemon=True)
    thread.start()
    answers = decode((base, thinking), "hybrid", asked, 8, finished)
    thread.join(timeout=120)
    assert killed == list(KILLS.values())
    assert base.traffic.retries + thinking.traffic.retries >= len(KILLS)
    assert answers == decode((here("base"), here("thinking")), "hybrid", asked, 100)


def run(folder: Path, *model_args: str) -> subprocess.CompletedProcess[str]:
    """`lm-eval-hybrid run` with remote models."""
    given = ",".join(["base_backend=remote", "thinking_backend=remote", *model_args])
    command = [
        sys.executable,
        "-m",
        "lm_eval_hybrid",
        "run",
        *TASKS,
        "--model_args",
        given,
        "--out",
        str(folder),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_run_that_gave_up_goes_on(ndif: LocalNdif, tmp_path: Path) -> None:
    here_args = ("base_backend=local", "thinking_backend=local")
    undisturbed = run(tmp_path / "local", *here_args)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = tmp_path / "remote"
    kept = folder / "hybrid"

    def surgeon() -> None:
        while not any(path.stat().st_size for path in kept.rglob("*.jsonl*")):
            done.wait(0.1)
        ndif.kill("api")

    done = threading.Event()
    thread = threading.Thread(target=surgeon, daemon=True)
    thread.start()
    given_up = run(folder, f"ndif_host={ndif.host}", "ndif_patience=3")
    thread.join(timeout=10)
    ndif.start()
    assert given_up.returncode == 2
    assert "model at" in given_up.stderr
    assert "did not answer within 3 s" in given_up.stderr
    assert "Traceback" not in given_up.stderr
    again = run(folder, f"ndif_host={ndif.host}", "ndif_patience=120")
    assert again.returncode == 0, again.stderr
    totals = [
        json.loads(path.read_text())["config"]["hybrid_totals"] for path in sorted((tmp_path).rglob("results_*.json"))
    ]
    assert totals[0]["requests"] == totals[1]["requests"] == 12
    assert totals[0]["tokens"] == totals[1]["tokens"]


def test_an_answer_that_does_not_come(ndif: LocalNdif) -> None:
    """The models hang for longer than a request may take."""
    asked = requests(2, 40)
    server = Server(ndif.host, timeout=2, patience=120)
    base, thinking = (
        NdifModel.at(server, str(paths.embedded_dir() / name), None, here(name).tokenizer, name)
        for name in ("base", "thinking")
    )
    hung = ndif.processes("ModelActor")
    assert hung
    for process in hung:
        process.suspend()
    timer = threading.Timer(7, lambda: [process.resume() for process in hung])
    timer.start()
    answers = decode((base, thinking), "hybrid", asked, 2)
    timer.join()
    assert base.traffic.retries + thinking.traffic.retries > 0
    assert answers == decode((here("base"), here("thinking")), "hybrid", asked, 2)


def test_a_server_that_wants_a_newer_client(ndif: LocalNdif, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("NDIF_MIN_NNSIGHT_VERSION", "99.0")
        ndif.kill("api")
        ndif.start()
        with pytest.raises(HybridError, match=r"99\.0.*install the release that it asks for"):
            NdifModel.at(Server(ndif.host), FOLDER, None, here("base").tokenizer, "base")
    ndif.kill("api")
    ndif.start()
    assert NdifModel.at(Server(ndif.host), FOLDER, None, here("base").tokenizer, "base").traffic.requests == 1


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(HybridError, match=r"the base model at .* did not answer within 1 s.*: ConnectionRefused"):
        NdifModel.at(Server("http://127.0.0.1:9", patience=1), FOLDER, None, here("base").tokenizer, "base")
