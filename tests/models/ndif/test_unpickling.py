"""Answers of a server may hold data only."""

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch

from lm_eval_hybrid.models.ndif.client import load_answer
from tests.models.ndif.double import saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    found = load_answer(saved({"whole": tensor, "part": tensor[1:, ::2]}))
    assert torch.equal(found["whole"], tensor)
    assert torch.equal(found["part"], tensor[1:, ::2])
    assert found["part"].dtype == dtype


def test_plain_data() -> None:
    value = {"a": [1, 2.5, None, True], "b": (b"bytes", "text"), "c": OrderedDict(d=torch.Size([1, 2]))}
    assert load_answer(saved(value)) == value


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.what


@pytest.mark.parametrize(
    "what", [Calls(eval, "1"), Calls(getattr, 1, "real"), Calls(torch.load, "x"), torch.nn.Linear(1, 1), Calls]
)
def test_other_types_are_refused(what: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="found "):
        load_answer(saved({"answer": what}))


@pytest.mark.parametrize("blob", [b"", b"not a file", saved({"a": 1})[:-30], pickle.dumps(Calls(eval, "1"))])
def test_incomplete_answers_are_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match=f"an answer of {len(blob)} bytes is incomplete"):
        load_answer(blob)
