"""Processes that share a run's documents, started by torchrun and by accelerate, on one node and on two."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlitedict import SqliteDict

pytestmark = pytest.mark.slow

LIMIT = 7  # odd: the second process's last request is repeated, and must not count twice
EVAL = (
    *("-m", "lm_eval", "--model", "hybrid", "--tasks", "gsm8k_embedded", "--limit", str(LIMIT)),
    *("--batch_size", "2", "--gen_kwargs", "max_gen_toks=40", "--log_samples"),
)


def begin(folder: Path, launch: Sequence[str], evaluate: Sequence[str] = EVAL) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, *launch, *evaluate, "--output_path", str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes: Sequence[subprocess.Popen[str]]) -> None:
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said


def found(folder: Path) -> dict[str, Any]:
    """What a run left, but for times."""
    (path,) = folder.rglob("results_*.json")
    (sidecar,) = folder.rglob("tokens_*.jsonl")
    results = json.loads(path.read_text())
    totals = {
        name: value
        for name, value in results["config"]["hybrid_totals"].items()
        if name not in ("seconds", "tokens_per_second")
    }
    lines = [json.loads(line) for line in sidecar.read_text().splitlines()]
    return {
        # Sums in another order differ in their last digits.
        "results": {
            name: round(value, 12) if isinstance(value, float) else value
            for name, value in results["results"]["gsm8k_embedded"].items()
        },
        "samples": results["n-samples"],
        "totals": totals,
        "tokens": {line["doc_id"]: [record["token"] for record in line["records"]] for line in lines},
        "lines": len(lines),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one process."""
    folder = tmp_path_factory.mktemp("alone")
    finish([begin(folder, ())])
    left = found(folder)
    assert left["lines"] == left["totals"]["requests"] == LIMIT
    assert left["totals"]["tokens"] == sum(map(len, left["tokens"].values()))
    return left


LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "three": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"),
    "accelerate": (*("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"), "--num_machines", "1"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_give_what_one_gives(alone: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    finish([begin(tmp_path, LAUNCHERS[launcher])])
    assert found(tmp_path) == alone


def test_two_nodes(alone: dict[str, Any], tmp_path: Path) -> None:
    """Two rendezvous hosts, each with an address of its own, which meet at the first one's port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "a run")
    nodes = [
        begin(
            tmp_path,
            (
                *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting),
                *("--local-addr", address),
            ),
        )
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    finish(nodes)
    assert found(tmp_path) == alone


def test_a_response_cache_of_two_processes(alone: dict[str, Any], tmp_path: Path) -> None:
    """Found answers are not made again; and a rank that has found all of its own does not hang the other."""
    for folder in ("first", "second"):
        finish(
            [begin(tmp_path / folder, LAUNCHERS["torchrun"], (*EVAL, "--use_cache", str(tmp_path / "cache")))],
        )
    # Beside its answers a cache holds whose they are.
    shares = sorted(len(SqliteDict(str(path))) - 1 for path in tmp_path.glob("cache*.db"))
    assert shares == [LIMIT // 2, LIMIT - LIMIT // 2], "each process answers its own"
    assert found(tmp_path / "first")["totals"] == alone["totals"]
    again = found(tmp_path / "second")
    assert again["totals"]["requests"] == 0
    assert again["results"] == alone["results"]
    assert again["tokens"] == alone["tokens"]


REPEATED = """\
task: repeated
custom_dataset: !function lm_eval_hybrid.scoring.data.gsm8k_embedded
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer.split('####')[1].strip()}}"
repeats: 4
generation_kwargs: {until: ["\\n"], do_sample: true, temperature: 0.8, max_gen_toks: 60}
filter_list:
  - name: majority
    filter: [{function: majority_vote}, {function: take_first}]
metric_list: [{metric: exact_match}]
"""


def test_repeats_are_those_of_one_process(tmp_path: Path) -> None:
    """The harness pads the second process, which has one document of three, with its last request and its repeats."""
    (tmp_path / "repeated.yaml").write_text(REPEATED)
    evaluate = (
        *("-m", "lm_eval", "--model", "hybrid", "--include_path", str(tmp_path), "--tasks", "repeated"),
        *("--limit", "3", "--batch_size", "4", "--log_samples"),
    )
    answers = []
    for name, launch in (("one", ()), ("two", LAUNCHERS["torchrun"])):
        finish([begin(tmp_path / name, launch, evaluate)])
        (path,) = (tmp_path / name).rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        answers.append({sample["doc_id"]: (sample["resps"], sample["filtered_resps"]) for sample in samples})
    assert answers[0] == answers[1]
    assert [len(resps[0]) for resps, _ in answers[0].values()] == [4, 4, 4]
