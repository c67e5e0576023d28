"""math_verify in a process of its own: its limits, and that it comes back after whatever happens to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.scoring import verifier as verifier_module
from lm_eval_hybrid.scoring.verifier import MathVerifyProcess

posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks")


def pid(process: MathVerifyProcess) -> int | None:
    return None if process._process is None else process._process.pid


def kill(process: MathVerifyProcess) -> None:
    running = pid(process)
    if running is not None:
        os.kill(running, signal.SIGKILL)


@pytest.fixture
def verifier() -> Iterator[MathVerifyProcess]:
    made = MathVerifyProcess(seconds=2.0)
    yield made
    made.close()


def test_it_starts_with_the_first_question_and_stays(verifier: MathVerifyProcess) -> None:
    assert pid(verifier) is None
    assert verifier.same("1+x", "x+1")
    first = pid(verifier)
    assert not verifier.same("1+x", "x+2")
    assert pid(verifier) == first is not None


@pytest.mark.parametrize("endless", ["9^{9^{9^9}}", "99999999999!"])
def test_what_takes_too_long_costs_the_limit_and_is_unequal(verifier: MathVerifyProcess, endless: str) -> None:
    verifier.same("1", "1")
    started = time.monotonic()
    assert not verifier.same(endless, "3")
    assert time.monotonic() - started < 4
    assert verifier.same("1+x", "x+1")


@posix
def test_a_process_that_something_else_ends_is_started_again(verifier: MathVerifyProcess) -> None:
    assert verifier.same("1+x", "x+1")
    first = pid(verifier)
    kill(verifier)
    assert verifier.same("2+x", "x+2")
    assert pid(verifier) != first


@posix
def test_it_may_be_ended_in_the_middle_of_a_comparison() -> None:
    made = MathVerifyProcess(seconds=30.0)
    assert made.same("1", "1")
    for seconds in (0.5, 2.5):  # the second time, when it is tried again
        threading.Timer(seconds, kill, (made,)).start()
    assert not made.same("9^{9^{9^9}}", "3")
    assert made.same("1+x", "x+1")
    made.close()


def test_threads_share_one(verifier: MathVerifyProcess) -> None:
    found: list[bool] = []

    def compare(k: int) -> None:
        found.extend(verifier.same(f"{k}x+{n}", f"{n}+{k}x") for n in range(3))

    threads = [threading.Thread(target=compare, args=(k,)) for k in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


@posix
def test_a_forked_process_has_its_own() -> None:
    assert verifier_module.verified("3+x", "x+3")
    mine = pid(verifier_module._PROCESS)
    child = os.fork()
    if child == 0:
        verifier_module.verified.cache_clear()
        right = pid(verifier_module._PROCESS) is None and verifier_module.verified("4+x", "x+4")
        verifier_module._PROCESS.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    verifier_module.verified.cache_clear()
    assert verifier_module.verified("3+x", "x+3")
    assert pid(verifier_module._PROCESS) == mine


def test_it_ends_with_its_parent_and_loads_no_models() -> None:
    code = (
        "import sys\n"
        "from lm_eval_hybrid.scoring import verifier as verifier_module\n"
        "assert verifier_module.verified('1+x', 'x+1')\n"
        "assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)\n"
        "print(verifier_module._PROCESS._process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(OSError):  # none of that number any more
        os.kill(int(done.stdout), 0)


def test_long_texts_are_no_expressions() -> None:
    assert not verifier_module.verified("1+" * 600 + "1", "601")


def test_where_it_cannot_be_started_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)
    with pytest.raises(HybridError, match="cannot start the process"):
        MathVerifyProcess().same("1+x", "x+1")
