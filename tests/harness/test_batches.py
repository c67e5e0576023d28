"""Sizes of batches."""

import pytest

from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.harness.batches import check_sizes


@pytest.mark.parametrize("size", [0, -1, "0", "x", "auto:", "automatic", 1.5, True])
def test_sizes_without_meaning_are_refused(size: object) -> None:
    for name in ("batch_size", "max_batch_size"):
        with pytest.raises(HybridError, match=f"{name} must be 1 or more"):
            check_sizes({name: size})


def test_sizes() -> None:
    check_sizes({"batch_size": None, "max_batch_size": 64})
    for size in (1, "16", "auto", "auto:4"):
        check_sizes({"batch_size": size})
    with pytest.raises(HybridError):
        check_sizes({"max_batch_size": "auto"})
