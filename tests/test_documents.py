"""Every command that the documents show runs. Real model names are replaced by a tiny system's folders."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_system import write_system

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in ("architecture", "benchmark", "bigger", "bundles", "discovery", "evaluation", "tasks")
    ),
)
# Run by `.ci/run` and by whoever reads this: what makes the environment that the tests run in.
MADE_BEFORE = ("make test", "make lint", "pip install .", "pip install ndif")
REAL = {
    "./my-bundle": "bundle",
    "Qwen/Qwen2.5-Math-1.5B": "base",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "thinking",
}
RECIPE = """
description: a test
license: MIT
authors: [tests]
citation: ""
base: embedded:base
thinking: embedded:thinking
prompt: {thinking: raw}
problems: [{data: embedded}]
traces: {count: 8, max_new_tokens: 300, holdout: 0.3}
seed: 0
sae: {layers: [3], sizes: [4], k: 1, seeds: 1, steps: 20, baselines: []}
vectors: {recipe: disagreement, layer: 2, bias_epochs: 1, epochs: 1, seeds: 1}
calibration: {problems: 2, max_new_tokens: 20}
"""


def commands(document: str) -> list[str]:
    """The command lines of a document's indented blocks, comments cut off."""
    lines = re.findall(
        r"^ {4}((?:make|pip|lm_eval|lm-eval-hybrid|python|torchrun|accelerate) .*)$",
        (ROOT / document).read_text(),
        re.M,
    )
    return [line.partition(" # ")[0].strip() for line in lines]


SHOWN = sorted({command for document in DOCUMENTS for command in commands(document)} - set(MADE_BEFORE))
# Tested below, or in tests/benchmarks, in parts or as a whole.
WHOLE = (
    "make demo",
    "make bench",
    "python -m",
    "lm-eval-hybrid discover --recipe embedded",
    *(f"lm-eval-hybrid behaviors {action} " for action in ("record", "push", "pull")),
)
APART = [c for c in SHOWN if c.startswith(WHOLE) and not c.endswith("--dry-run")]
REMOTE = [c for c in SHOWN if "remote" in c]  # tests/remote runs them
NODES = [c for c in SHOWN if "--nnodes" in c]  # tests/test_data_parallel.py runs two nodes
# The harness reads all its tasks at every start, so its command lines are slow; the fixture runs one of them anyway.
TWO = "torchrun --nproc-per-node 2 -m"
SLOW = (
    *("lm_eval", "lm-eval-hybrid run", "lm-eval-hybrid rerun", "lm-eval-hybrid plan", "accelerate"),
    *(f"{TWO} lm_eval ", f"{TWO} lm_eval_hybrid run"),
)
RUNS = [
    pytest.param(c, marks=pytest.mark.slow if c.startswith(SLOW) else ())
    for c in SHOWN
    if c not in APART + REMOTE + NODES
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the commands' arguments name: data, a bundle, samples of a thinking run."""
    folder = tmp_path_factory.mktemp("desk")
    write_system(folder)
    for name, row in (
        ("gsm8k_test.jsonl", {"question": "1 + 1?", "answer": "#### 2"}),
        ("math500_test.jsonl", {"problem": "$1 + 1$?", "solution": "$2$", "answer": "2"}),
    ):
        (folder / name).write_text(json.dumps(row) + "\n")
    (folder / "my-recipe.yaml").write_text(RECIPE)
    (folder / "two-gpus.yaml").write_text("gpus: [24GiB, 24GiB]\nmemory: 64GiB\n")
    _stock(folder)
    arms = "--arms base,hybrid,thinking --limit 4 --batch_size 8 --out results"
    run(f"lm-eval-hybrid run --tasks gsm8k_embedded,math500_embedded {arms}", folder)
    for arm in ("thinking", "hybrid"):
        shutil.copytree(folder / "results" / arm, folder / "DIR" / arm)
    _shelve(folder)
    samples = next((folder / "DIR" / "thinking").rglob("samples_gsm8k_*.jsonl"))
    (folder / "samples_thinking.jsonl").write_bytes(samples.read_bytes())
    return folder


def _stock(folder: Path) -> None:
    """What the harness's stock tasks read in place of the hub, and the suite that docs/tasks.md shows."""
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)]
    for split in ("train", "test"):
        _write_rows(folder / "openai" / "gsm8k" / f"{split}.jsonl", rows)
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test"))
    readme = f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n"
    (folder / "openai" / "gsm8k" / "README.md").write_text(readme)
    solved = {"problem": "$1 + 1$?", "solution": r"$\boxed{2}$", "answer": "2", "subject": "Algebra", "level": 1}
    _write_rows(folder / "HuggingFaceH4" / "MATH-500" / "test.jsonl", [solved])
    _write_rows(folder / "aime24_test.jsonl", [{"problem": "$1 + 1$?", "answer": 2}])
    suite = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/tasks.md").read_text(), re.M | re.S)[0]
    (folder / "suites").mkdir()
    (folder / "suites" / "my_suite.yaml").write_text(suite)


def _write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _shelve(folder: Path) -> None:
    """What docs/bundles.md names: bundles, copies of them, a packed one, a control vector, runs to record."""
    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats import gguf
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions
    from lm_eval_hybrid.bundles.store import archive

    bundle = Bundle.load(folder / "bundle")
    plan, *others = bundle.manifest.behaviors
    for name, behaviors, changes in (
        ("my-bundle", others, {}),
        ("edited", others, {"description": "Edited"}),
        ("edited-again", others, {"description": "Edited", "version": "1.0.1"}),
        ("added", [plan], {"name": "added"}),
    ):
        manifest = bundle.manifest.model_copy(update={"behaviors": tuple(behaviors), **changes})
        gone = {b.tensor for b in bundle.manifest.behaviors} - {b.tensor for b in behaviors}
        tensors = {name: tensor for name, tensor in bundle.tensors.items() if name not in gone}
        Bundle(manifest, tensors).save(folder / name)
    archive.pack(folder / "bundle", folder / "received.zip")
    gguf.write(bundle, ExportOptions("plan", 1.0), folder / "vector.gguf")


def run(command: str, folder: Path) -> str:
    """Run a command line in `folder`, real names replaced; returns what it printed."""
    for name, part in REAL.items():
        command = command.replace(name, str(folder / part))
    command = re.sub(r"_device=cuda:\d", "_device=cpu", command)
    argv = shlex.split(command)
    if argv[0] in ("lm_eval", "lm-eval-hybrid", "torchrun", "accelerate"):
        argv[0] = str(BIN / argv[0])
    argv = [
        part
        for word in argv
        for part in (sorted(map(str, folder.glob(word))) if "*" in word and "=" not in word else [word])
    ]
    if "run" in argv:
        argv[argv.index("--limit") + 1] = "4"  # as the fixture, whose folder it may go on in
    if "--model" in argv and "run" not in argv:
        argv += ["--limit", "2"] if "--limit" not in argv else []
        argv += ["--gen_kwargs", "max_gen_toks=20"] if "bundle" in command else []
    environment = os.environ | {"LM_EVAL_HYBRID_DATA": str(folder), "LM_EVAL_HYBRID_BEHAVIORS": str(folder / "shelf")}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("command", RUNS)
def test_a_command_shown_runs(command: str, desk: Path) -> None:
    assert run(command, desk) or {"discover", "report"} & set(command.split())


def test_the_documents_show_commands_of_every_kind() -> None:
    assert RUNS and APART and REMOTE and NODES


def test_the_recipe_shown_is_one(tmp_path: Path) -> None:
    from lm_eval_hybrid.discovery.recipe import load

    (shown,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/discovery.md").read_text(), re.M | re.S)
    (tmp_path / "shown.yaml").write_text(shown)
    recipe = load(str(tmp_path / "shown.yaml"))
    assert recipe.judge is not None and recipe.sae.layers == (4, 8, 12, 16)


@pytest.mark.slow
def test_the_demo_ends_in_its_table(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("the demo runs in .venv: make setup")
    command = ["make", "demo", "DEMO_LIMIT=2", f"DEMO_OUT={tmp_path / 'demo'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("base", "hybrid", "thinking", "takeover", "gap recovered"):
        assert word in done.stdout
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.mark.slow
def test_discovery_reproduces_the_shipped_bundle(tmp_path: Path) -> None:
    """The same behaviors, autoencoder and holdout metrics, and vectors and a network of the same direction.

    Processors and numbers of threads round differently, which training enlarges: Adam normalizes gradients, even those
    near zero. The network of another seed has a cosine near 0.
    """
    import torch

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.commands.main import main

    out, work = tmp_path / "embedded" / "2.0.0", tmp_path / "work"
    main(["discover", "--recipe", "embedded", "--out", str(out), "--work", str(work)])
    made, shipped = (Bundle.load(folder / "embedded" / "2.0.0") for folder in (tmp_path, ROOT / "behaviors"))
    words = [[b.model_copy(update={"norm": 0.0}) for b in bundle.manifest.behaviors] for bundle in (made, shipped)]
    assert words[0] == words[1]
    assert made.manifest.training.holdout == pytest.approx(shipped.manifest.training.holdout, abs=0.01)
    for name, tensor in shipped.tensors.items():
        if name.startswith("sae."):
            assert (made.tensors[name] - tensor).norm() < 1e-3 * tensor.norm(), name
        else:
            assert torch.cosine_similarity(made.tensors[name].flatten(), tensor.flatten(), dim=0) > 0.98, name


@pytest.mark.slow
def test_training_makes_the_parts_of_the_pair(tmp_path: Path) -> None:
    """A few steps of the committed script: every file of the embedded pair appears, whole, and is kept when rerun."""
    from transformers import AutoModelForCausalLM

    from lm_eval_hybrid.embedded.training import TrainingRecipe, train_pair

    recipe = TrainingRecipe(base_rounds=((3, 1.0), (1, 0.5)), thinking_rounds=((2, 0.2),), batch_tokens=1024)
    train_pair(tmp_path, recipe)
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    train_pair(tmp_path, recipe)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "thinking").config.vocab_size > 256
