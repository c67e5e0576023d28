"""Bundles, archives and other programs' files as an attacker would make them.

Whatever is read must end in success or in a HybridError of one line, without control characters. It must run nothing,
write nothing but what was asked for, and take under 10 s and under 2 GB. Cases run in a process of their own, which is
ended where one hangs: what a case was made of then lies in the folder that the failure names.
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
from tests.bundles.fuzzing import place as place_module
from tests.bundles.fuzzing.bombs import BOMBS
from tests.bundles.fuzzing.place import Place, check_line, forget_peak, peak_bytes
from tests.bundles.fuzzing.running import KINDS, QUICK, SLOW, outcome


@pytest.fixture
def root(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Path:
    """A place's folder: two sound bundles of different widths, files of the reference, and a file to be kept."""
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


def test_there_are_thousands() -> None:
    assert SLOW.keys() == QUICK.keys() == KINDS.keys()
    assert sum(SLOW.values()) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_little_never_becomes_much(root: Path, bomb: str) -> None:
    assert outcome(root, bomb)["cases"] == 1


def refuse(message: str, leaving: Path | None = None) -> None:
    if leaving:
        leaving.write_text("part of it")
    raise HybridError(message)


@pytest.mark.parametrize(
    ("found", "act"),
    [
        ("more than a line", lambda place: check_line("a\nb")),
        ("control characters", lambda place: check_line("\x1b[2J")),
        ("was left by what was refused", lambda place: refuse("a", leaving=place.out / "a")),
        ("was left by what was written", lambda place: (place.out / ".a.new").mkdir()),
        ("written outside", lambda place: place.mark.mkdir()),
        ("written outside", lambda place: (place.inside / "a").write_text("a")),
        ("written outside", lambda place: (place.root / "kept").write_text("a")),
        ("written outside", lambda place: (place.root / "sound" / "README.md").unlink()),
        (r"\d bytes", lambda place: torch.ones(1 << 25)),
        (r"\d s", lambda place: sum(range(10_000_000))),
        ("invalid literal", lambda place: int("x")),
    ],
)
def test_what_must_not_happen_is_noticed(
    root: Path, monkeypatch: pytest.MonkeyPatch, found: str, act: Callable[[Place], object]
) -> None:
    place = Place(root)
    place.renew()
    place.attempt(lambda: refuse("a; b; c"))
    if found == r"\d s":  # what else is to be noticed may take longer, on a busy machine
        monkeypatch.setattr(place_module, "SECONDS", 0.1)
    gc.collect()  # what other tests have left may not make room meanwhile
    forget_peak()
    monkeypatch.setattr(place_module, "BYTES", peak_bytes() + (1 << 26))
    with pytest.raises((AssertionError, ValueError), match=found):
        place.attempt(lambda: act(place))
