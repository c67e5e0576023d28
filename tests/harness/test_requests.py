"""Requests are read and checked before anything is generated."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.harness.generation import Settings, check_not_empty, check_room


def request(context: str) -> Instance:
    return Instance("generate_until", {}, (context, {}), 0, ("gsm8k", 7, 1))


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, Settings(256, ())),
        ({"until": "Question:", "max_gen_toks": 9}, Settings(9, ("Question:",))),
        ({"until": ["\n", ""], "max_new_tokens": 3, "do_sample": False}, Settings(3, ("\n",))),
        ({"until": ["Q"], "do_sample": False, "temperature": 0.0, "top_p": 1.0}, Settings(256, ("Q",))),
        ({"do_sample": True}, Settings(256, (), Sampling(1.0, seed=7))),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}, Settings(256, (), Sampling(0.7, 5, 0.9, 3))),
    ],
)
def test_settings(given: dict[str, Any], settings: Settings) -> None:
    before = str(given)
    assert Settings.of(given, 256, seed=7) == settings
    assert str(given) == before, "the response cache finds an answer by these very settings"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"num_beams": 4}, "knows no beams"),
        ({"temperature": 0.7, "min_p": 0.1}, "found min_p"),
        ({"temperature": -1, "do_sample": True}, "temperature must be a finite number above 0; found -1"),
        ({"temperature": 0.7, "top_p": 1.5}, "top_p must be above 0 and at most 1; found 1.5"),
        ({"temperature": 0.7, "top_k": "many"}, "must be of their kind; found .*'many'"),
        ({"repetition_penalty": 1.2}, "found repetition_penalty"),
        ({"max_gen_toks": "abc"}, "must be of their kind; found .*'abc'"),
        ({"until": 5}, "until must be strings; found 5"),
        ({"max_gen_toks": 0}, "max_gen_toks must be 1 or more; found 0"),
    ],
)
def test_settings_without_meaning_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        Settings.of(given, 256)


def test_an_empty_prompt_is_refused() -> None:
    check_not_empty(request("x"))
    with pytest.raises(HybridError, match=r"at least one token; found an empty one \(document 7 of gsm8k\)"):
        check_not_empty(request(""))


def test_a_prompt_must_leave_room_for_its_answer() -> None:
    check_room(request("x"), "base", 90, Settings(10, ()), 100)
    with pytest.raises(
        HybridError, match=r"base model's context of 100.*prompt of 91 .*max_gen_toks=10.*max_gen_toks=9 or"
    ):
        check_room(request("x"), "base", 91, Settings(10, ()), 100)
    with pytest.raises(HybridError, match=r"prompt of 150 .*\(document 7 of gsm8k\); shorten the prompt"):
        check_room(request("x"), "thinking", 150, Settings(10, ()), 100)
