"""Number of cases by kind, and running them in a separate process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.bundles import compatibility
from tests.bundles.fuzzing.bombs import BOMBS
from tests.bundles.fuzzing.bundles import archive_case, folder_case, manifest_case, tensors_case
from tests.bundles.fuzzing.formats import (
    csv_case,
    gguf_case,
    known_models,
    mapping_case,
    reference_case,
    saelens_case,
    torch_case,
)
from tests.bundles.fuzzing.mutating import Draw
from tests.bundles.fuzzing.sandbox import BYTES, Action, Sandbox

QUICK = {"manifest": 24, "tensors": 20, "folder": 12, "archive": 16, "gguf": 8, "torch": 10, "csv": 6, "saelens": 6}
QUICK |= {"mapping": 6, "reference": 6}
SLOW = {"manifest": 700, "tensors": 400, "folder": 150, "archive": 300, "gguf": 200, "torch": 250, "csv": 100}
SLOW |= {"saelens": 150, "mapping": 200, "reference": 150}

KINDS: dict[str, Callable[[Draw, Sandbox], list[Action]]] = {
    "manifest": manifest_case,
    "tensors": tensors_case,
    "folder": folder_case,
    "archive": archive_case,
    "gguf": gguf_case,
    "torch": torch_case,
    "csv": csv_case,
    "saelens": saelens_case,
    "mapping": mapping_case,
    "reference": reference_case,
}


def main(root: str, *cases: str) -> None:
    """Run the cases, each a bomb's name or KIND=COUNT, below `root`, and print their time and memory."""
    sandbox = Sandbox(Path(root))
    resource.setrlimit(resource.RLIMIT_AS, (4 * BYTES, 4 * BYTES))  # so that a failure does not fill the machine
    with mock.patch.object(compatibility, "_look_up", known_models):
        for case in cases:
            kind, counted, count = case.partition("=")
            if counted:
                explore(sandbox, kind, int(count))
            else:
                sandbox.renew()
                sandbox.attempt(*BOMBS[kind](sandbox))
    print(json.dumps({"cases": sandbox.cases, "slowest": sandbox.slowest, "largest": sandbox.largest}))


def explore(sandbox: Sandbox, kind: str, count: int) -> None:
    """Run that many cases of a kind; the same ones each time if they are few."""
    steady = count < 100

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=steady,
        print_blob=not steady,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def case(data: st.DataObject) -> None:
        sandbox.renew()
        sandbox.attempt(*KINDS[kind](data.draw, sandbox))

    case()


def outcome(root: Path, *cases: str) -> dict[str, float]:
    """The output of `main` in a separate process, whose home and temporary files are also in `root`."""
    here = Path(__file__).parents[3]
    folders = {"HOME": "home", "TMPDIR": "home", "XDG_CACHE_HOME": "home/cache", "XDG_DATA_HOME": "home/data"}
    environment = {**os.environ, **{name: str(root / folder) for name, folder in folders.items()}}
    environment |= {"PYTHONPATH": str(here), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code = "import sys; from tests.bundles.fuzzing.running import main; main(*sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(root), *cases], cwd=root, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, f"the last case is in {root / 'inside'}\n{ended.stdout[-4000:]}{ended.stderr[-8000:]}"
    return json.loads(ended.stdout.splitlines()[-1])
