"""Fuzz tests: bundles, archives and other programs' files as an attacker would make them.

Reading must end in success or in a HybridError of one line without control characters. It must execute nothing, write
nothing but its output, and take under 10 s and under 2 GB. Cases run in a separate process, which is killed if one
hangs; the failure names the folder with the inputs of the last case.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.common.errors import HybridError
from tests.bundles.formats import layout
from tests.bundles.fuzzing import sandbox as sandbox_module
from tests.bundles.fuzzing.bombs import BOMBS
from tests.bundles.fuzzing.running import KINDS, QUICK, SLOW, outcome
from tests.bundles.fuzzing.sandbox import Sandbox, check_line, forget_peak, peak_bytes


@pytest.fixture
def root(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Path:
    """The sandbox's folder: two sound bundles of different widths, reference files, and a file that must stay."""
    root = tmp_path / "root"
    make_bundle().save(root / "sound")
    make_bundle(network=5, base={"id": "org/other", "hidden_size": 7}).save(root / "other")
    layout.put_vectors(root / "reference")
    layout.put_sae(root / "reference")
    layout.put_taxonomy(root / "reference")
    (root / "home").mkdir()
    (root / "kept").write_text("years of work")
    return root


def test_a_hundred_cases(root: Path) -> None:
    found = outcome(root, *(f"{kind}={count}" for kind, count in QUICK.items()))
    assert found["cases"] >= 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_cases(root: Path, kind: str) -> None:
    assert outcome(root, f"{kind}={SLOW[kind]}")["cases"] >= SLOW[kind]


def test_the_slow_cases_are_thousands() -> None:
    assert SLOW.keys() == QUICK.keys() == KINDS.keys()
    assert sum(SLOW.values()) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_expand(root: Path, bomb: str) -> None:
    assert outcome(root, bomb)["cases"] == 1


def refuse(message: str, leaving: Path | None = None) -> None:
    if leaving:
        leaving.write_text("part of it")
    raise HybridError(message)


@pytest.mark.parametrize(
    ("found", "act"),
    [
        ("more than a line", lambda sandbox: check_line("a\nb")),
        ("control characters", lambda sandbox: check_line("\x1b[2J")),
        ("a refused case left something", lambda sandbox: refuse("a", leaving=sandbox.out / "a")),
        ("temporary files were left", lambda sandbox: (sandbox.out / ".a.new").mkdir()),
        ("written outside", lambda sandbox: sandbox.mark.mkdir()),
        ("written outside", lambda sandbox: (sandbox.inside / "a").write_text("a")),
        ("written outside", lambda sandbox: (sandbox.root / "kept").write_text("a")),
        ("written outside", lambda sandbox: (sandbox.root / "sound" / "README.md").unlink()),
        (r"\d bytes", lambda sandbox: torch.ones(1 << 25)),
        (r"\d s", lambda sandbox: sum(range(10_000_000))),
        ("invalid literal", lambda sandbox: int("x")),
    ],
)
def test_the_sandbox_notices_violations(
    root: Path, monkeypatch: pytest.MonkeyPatch, found: str, act: Callable[[Sandbox], object]
) -> None:
    sandbox = Sandbox(root)
    sandbox.renew()
    sandbox.attempt(lambda: refuse("a; b; c"))
    if found == r"\d s":  # what else is to be noticed may take longer, on a busy machine
        monkeypatch.setattr(sandbox_module, "SECONDS", 0.1)
    gc.collect()  # what other tests have left may not make room meanwhile
    forget_peak()
    monkeypatch.setattr(sandbox_module, "BYTES", peak_bytes() + (1 << 26))
    with pytest.raises((AssertionError, ValueError), match=found):
        sandbox.attempt(lambda: act(sandbox))
