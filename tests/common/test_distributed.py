import pytest

from lm_eval_hybrid.common.distributed import Ranks

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks() == Ranks(0, 1, 0)
    assert Ranks().first
    Ranks().wait()  # for nobody
    for name, value in zip(NAMES, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(rank=5, world=8, local=1)
    assert not Ranks.from_environment().first
