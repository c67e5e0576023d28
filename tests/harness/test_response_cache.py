"""The response cache belongs to one policy."""

from pathlib import Path

import pytest
from sqlitedict import SqliteDict

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.resuming import guard_cache

IDENTITY = {"arm": "hybrid", "policy": {"coefficients": (1.0, 2.0), "seed": 0}}


def test_a_cache_is_marked_once_and_then_known(tmp_path: Path) -> None:
    with SqliteDict(str(tmp_path / "c.db"), autocommit=True) as answers:
        guard_cache(answers, IDENTITY)
    with SqliteDict(str(tmp_path / "c.db"), autocommit=True) as answers:
        guard_cache(answers, IDENTITY)
        assert len(answers) == 1


def test_another_policy_is_refused_by_what_differs(tmp_path: Path) -> None:
    answers: dict[str, str] = {}
    guard_cache(answers, IDENTITY)
    other = {"arm": "hybrid", "policy": {"coefficients": (1.0, 3.0), "seed": 0}}
    with pytest.raises(HybridError, match=r"policy.coefficients was \[1.0, 2.0\], now \[1.0, 3.0\]; ") as failure:
        guard_cache(answers, other)
    assert "seed" not in str(failure.value)


def test_answers_of_nobody_knows_whom_are_refused() -> None:
    with pytest.raises(HybridError, match="answers of an unknown model"):
        guard_cache({"some hash": "an answer"}, IDENTITY)
