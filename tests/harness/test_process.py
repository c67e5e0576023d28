"""A run without documents ends in one line."""

import subprocess
import sys

SCRIPT = """
from lm_eval_hybrid.harness.runtime import install_excepthook
install_excepthook()
install_excepthook()
raise {error}
"""


def run(error: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(error=error)], capture_output=True, text=True)


def test_the_harness_words_become_one_line() -> None:
    done = run('ValueError("task.build_requests() did not find any docs!")')
    assert done.returncode == 1
    assert done.stderr.startswith("lm-eval-hybrid: error: the run has no documents (as with --limit 0)")
    assert done.stderr.count("\n") == 1


def test_other_errors_keep_their_trace() -> None:
    done = run('ValueError("something else")')
    assert done.returncode == 1
    assert "Traceback" in done.stderr
