"""gap.json: every figure of an experiment, what they rest on, and what it takes to make them again.

Whatever two runs of one experiment may differ in without any figure's being another is under `timings`.
"""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.experiment.plan import Experiment, read
from lm_eval_hybrid.experiment.running import arm_folder, versions
from lm_eval_hybrid.results import outputs
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.runs import ArmRun, Runs
from lm_eval_hybrid.results.statistics import RESAMPLES

GAP_FILE = "gap.json"
SCHEMA = 1


def write(folder: Path, experiment: Experiment, arguments: Sequence[str]) -> dict[str, Any]:
    """Write DIR/gap.json, and return what is in it.

    Args:
        folder: of the experiment, all of which has been run.
        arguments: of the command, for the reader.

    Raises:
        HybridError: where the runs cannot be compared.
    """
    content = _content(folder, experiment, arguments)
    write_file(folder / GAP_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return content


def load(path: Path) -> tuple[dict[str, Any], Experiment]:
    """The content of a gap.json, and the experiment that it is of.

    Raises:
        HybridError: it is none, or another version's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema_version"]
        if schema == SCHEMA:
            return content, read(content["experiment"], str(path))
    except HybridError:
        raise
    except OSError as error:
        raise HybridError(f"{path}: must be a readable gap.json; found {error.strerror}; name another") from None
    except (ValueError, KeyError, TypeError) as error:
        raise HybridError(f"{path}: must be a gap.json, as run writes it; found {error!r}; name another") from None
    raise HybridError(
        f"{path}: must have schema version {SCHEMA}; found {schema!r}; read it with the lm-eval-hybrid that wrote it"
    )


def hardware() -> dict[str, Any]:
    """What results were made on: floating-point sums depend on it."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _content(folder: Path, experiment: Experiment, arguments: Sequence[str]) -> dict[str, Any]:
    runs = Runs(
        tuple(
            run
            for run in outputs.read(folder).runs
            if run.arm in experiment.arms and run.samples.parent == arm_folder(folder, run.arm)
        )
    )
    figures = compare(runs, experiment.bootstrap_seed)
    hybrid = next((run for run in runs.runs if run.arm == "hybrid"), runs.runs[0])
    return {
        "schema_version": SCHEMA,
        "command": shlex.join(["lm-eval-hybrid", *arguments]),
        "experiment": experiment.model_dump(mode="json"),
        "bundle": {"identity": hybrid.bundle, "tensors_sha256": hybrid.tensors},
        "models": {role: _first(getattr(run, role) for run in runs.runs) for role in ("base", "thinking")},
        "seeds": {"decoding": experiment.seed, "harness": experiment.seed, "bootstrap": experiment.bootstrap_seed},
        "bootstrap": {"method": "BCa, paired over documents", "resamples": RESAMPLES, "interval": 0.95},
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "tasks": [asdict(task) for task in figures],
        "runs": [_run(run) for run in runs.runs],
        "timings": {
            "written": _newest(runs.runs),
            "tokens_per_second": {f"{run.task}/{run.arm}": run.tokens_per_second for run in runs.runs},
            "files": {f"{run.task}/{run.arm}": run.samples.name for run in runs.runs},
            "python": sys.executable,
        },
    }


def _run(run: ArmRun) -> dict[str, Any]:
    """What says whether another run gave the same answers."""
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


def _first(values: Any) -> str | None:
    return next((value for value in values if value is not None), None)


def _newest(runs: Sequence[ArmRun]) -> str:
    return max(run.date for run in runs)
