"""gap.json: all figures of an experiment, what they rest on, and what it takes to run it again.

Everything in which two runs of one experiment may differ without a different figure is under `timings`.
"""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.experiment.definition import Experiment, read
from lm_eval_hybrid.experiment.running import arm_folder, versions
from lm_eval_hybrid.results import outputs
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.runs import ArmRun, Runs
from lm_eval_hybrid.results.statistics import RESAMPLES

GAP_FILE = "gap.json"
SCHEMA = 1
_CIRCUMSTANCES = ("bundle", "models", "versions", "hardware")


def write(folder: Path, experiment: Experiment, arguments: Sequence[str]) -> dict[str, Any]:
    """Write DIR/gap.json for a finished experiment. Returns its content.

    Args:
        arguments: of the command, for the reader.

    Raises:
        HybridError: the runs cannot be compared.
    """
    content = _content(folder, experiment, arguments)
    write_file(folder / GAP_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return content


def load(path: Path) -> tuple[dict[str, Any], Experiment]:
    """The content of a gap.json, and its experiment.

    Raises:
        HybridError: the file is not a gap.json, or another version's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema_version"]
        if schema == SCHEMA:
            return content, read(content["experiment"], str(path))
    except HybridError:
        raise
    except OSError as error:
        raise HybridError(f"{path}: cannot be read ({error.strerror}); name a gap.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise HybridError(f"{path}: not a gap.json, as run writes it ({error!r}); name another") from None
    raise HybridError(
        f"{path} has schema version {schema!r}; must be {SCHEMA}; read it with the lm-eval-hybrid that wrote it"
    )


def hardware() -> dict[str, Any]:
    """The hardware, since floating-point sums depend on it."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def changed_circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How bundle, models, versions and hardware of two gap.json contents differ: one line each."""
    pairs = ((name, then.get(name) or {}, now.get(name) or {}) for name in _CIRCUMSTANCES)
    return [
        f"{name} {key}: {old.get(key)} then, {new.get(key)} now"
        for name, old, new in pairs
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def changed_runs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each arm and task whose answers differ between two gap.json contents."""
    old, new = ({(run["task"], run["arm"]): run for run in content["runs"]} for content in (then, now))
    for task, arm in sorted(old.keys() | new.keys()):
        first, second = old.get((task, arm)), new.get((task, arm))
        where = f"{task}, arm {arm}"
        if first is None or second is None:
            yield f"{where}: run {'only now' if first is None else 'only then'}"
        elif first["documents"] != second["documents"]:
            yield f"{where}: {first['documents']} documents then, {second['documents']} now"
        elif first["right"] != second["right"]:
            pairs = list(zip(first["right"], second["right"], strict=True))
            gained, lost = pairs.count(("0", "1")), pairs.count(("1", "0"))
            yield f"{where}: {gained} documents right that were wrong, {lost} wrong that were right"
        elif first["answers_sha256"] != second["answers_sha256"]:
            yield f"{where}: other answers, all as right or wrong as they were"


def _content(folder: Path, experiment: Experiment, arguments: Sequence[str]) -> dict[str, Any]:
    runs = tuple(
        run
        for run in outputs.read(folder).runs
        if run.arm in experiment.arms and run.samples.parent == arm_folder(folder, run.arm)
    )
    hybrid = next((run for run in runs if run.arm == "hybrid"), runs[0])
    models = {"base": [run.base for run in runs], "thinking": [run.thinking for run in runs]}
    return {
        "schema_version": SCHEMA,
        "command": shlex.join(["lm-eval-hybrid", *arguments]),
        "experiment": experiment.model_dump(mode="json"),
        "bundle": {"identity": hybrid.bundle, "tensors_sha256": hybrid.tensors},
        "models": {role: next((name for name in names if name is not None), None) for role, names in models.items()},
        "seeds": {"decoding": experiment.seed, "harness": experiment.seed, "bootstrap": experiment.bootstrap_seed},
        "bootstrap": {"method": "BCa, paired over documents", "resamples": RESAMPLES, "interval": 0.95},
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "tasks": [asdict(task) for task in compare(Runs(runs), experiment.bootstrap_seed)],
        "runs": [_run(run) for run in runs],
        "timings": {
            "written": max(run.date for run in runs),
            "tokens_per_second": {f"{run.task}/{run.arm}": run.tokens_per_second for run in runs},
            "files": {f"{run.task}/{run.arm}": run.samples.name for run in runs},
            "python": sys.executable,
        },
    }


def _run(run: ArmRun) -> dict[str, Any]:
    """What shows whether another run gave the same answers."""
    texts = [document.counts.text_sha256 if document.counts else "" for document in run.documents]
    return {
        "task": run.task,
        "arm": run.arm,
        "fingerprint": run.fingerprint,
        "bundle": run.bundle,
        "policy": run.settings,
        "documents": len(run.documents),
        "right": "".join(str(int(document.exact_match)) for document in run.documents),
        "answers_sha256": hashlib.sha256("".join(texts).encode()).hexdigest() if all(texts) else None,
    }
