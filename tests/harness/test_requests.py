"""Requests are read and checked before anything is generated."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.harness.requests import Limits, check_not_empty, check_room


def request(context: str) -> Instance:
    return Instance("generate_until", {}, (context, {}), 0, ("gsm8k", 7, 1))


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, Limits(256, ())),
        ({"until": "Question:", "max_gen_toks": 9}, Limits(9, ("Question:",))),
        ({"until": ["\n", ""], "max_new_tokens": 3, "do_sample": False}, Limits(3, ("\n",))),
        ({"until": ["Q"], "do_sample": False, "temperature": 0.0, "top_p": 1.0}, Limits(256, ("Q",))),
    ],
)
def test_limits(given: dict[str, Any], limits: Limits) -> None:
    before = str(given)
    assert Limits.of(given, 256) == limits
    assert str(given) == before, "the response cache finds an answer by these very settings"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"do_sample": True, "temperature": 0.7}, "decodes greedily"),
        ({"temperature": 0.7}, "decodes greedily"),
        ({"num_beams": 4}, "decodes greedily"),
        ({"repetition_penalty": 1.2}, "found repetition_penalty"),
        ({"max_gen_toks": "abc"}, "must be of their kind; found .*'abc'"),
        ({"until": 5}, "until must be strings; found 5"),
        ({"max_gen_toks": 0}, "max_gen_toks must be 1 or more; found 0"),
    ],
)
def test_what_greedy_decoding_cannot_do_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        Limits.of(given, 256)


def test_an_empty_prompt_is_refused() -> None:
    check_not_empty(request("x"))
    with pytest.raises(HybridError, match=r"at least one token; found an empty one \(document 7 of gsm8k\)"):
        check_not_empty(request(""))


def test_a_prompt_must_leave_room_for_its_answer() -> None:
    check_room(request("x"), "base", 90, Limits(10, ()), 100)
    with pytest.raises(
        HybridError, match=r"base model's context of 100.*prompt of 91 .*max_gen_toks=10.*max_gen_toks=9 or"
    ):
        check_room(request("x"), "base", 91, Limits(10, ()), 100)
    with pytest.raises(HybridError, match=r"prompt of 150 .*\(document 7 of gsm8k\); shorten the prompt"):
        check_room(request("x"), "thinking", 150, Limits(10, ()), 100)
