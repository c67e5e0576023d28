"""A HybridError is shown as one line; every other exception keeps its stack trace."""

import subprocess
import sys

import pytest

from lm_eval_hybrid.common.errors import HybridError


def run(code: str) -> subprocess.CompletedProcess[str]:
    prelude = "from lm_eval_hybrid.common.errors import HybridError, show_plainly; show_plainly()\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True)


def test_a_hybrid_error_is_one_line_and_status_one() -> None:
    done = run("raise HybridError('there is no arm nope; pass arm=base')")
    assert done.returncode == 1
    assert done.stderr == "lm-eval-hybrid: error: there is no arm nope; pass arm=base\n"


def test_a_message_of_several_lines_is_still_one_line() -> None:
    assert run("raise HybridError('a;\\n  b; c')").stderr == "lm-eval-hybrid: error: a; b; c\n"


def test_a_hybrid_error_with_a_cause_is_one_line() -> None:
    done = run("try: {}['x']\nexcept KeyError as error: raise HybridError('x; none; add x') from error")
    assert done.stderr == "lm-eval-hybrid: error: x; none; add x\n"


def test_other_exceptions_keep_their_trace() -> None:
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ValueError: a bug" in done.stderr


def test_the_previous_hook_gets_other_exceptions() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.excepthook = lambda *fault: print('former', fault[0].__name__)\n"
            "from lm_eval_hybrid.common.errors import show_plainly\n"
            "show_plainly(); hook = sys.excepthook; show_plainly(); assert sys.excepthook is hook; 1 / 0",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "former ZeroDivisionError\n"


def test_a_hybrid_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="an arm"):
        raise HybridError("an arm is missing")
