"""Requests are read and checked before anything is generated."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.harness.generation import GenerationSettings, check_fits_context, check_not_empty


def request(context: str) -> Instance:
    return Instance("generate_until", {}, (context, {}), 0, ("gsm8k", 7, 1))


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, GenerationSettings(256, ())),
        ({"until": "Question:", "max_gen_toks": 9}, GenerationSettings(9, ("Question:",))),
        ({"until": ["\n", ""], "max_new_tokens": 3, "do_sample": False}, GenerationSettings(3, ("\n",))),
        ({"until": ["Q"], "do_sample": False, "temperature": 0.0, "top_p": 1.0}, GenerationSettings(256, ("Q",))),
        ({"do_sample": True}, GenerationSettings(256, (), Sampling(1.0, seed=7))),
        ({"min_p": 0, "repetition_penalty": 1.0, "num_beams": 1, "use_cache": False}, GenerationSettings(256, ())),
        ({"min_p": 0.3, "typical_p": 0.5}, GenerationSettings(256, ())),  # without effect on greedy decoding
        ({"temperature": 1, "min_p": 0.0}, GenerationSettings(256, (), Sampling(1.0, seed=7))),
        (
            {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3},
            GenerationSettings(256, (), Sampling(0.7, 5, 0.9, 3)),
        ),
    ],
)
def test_settings(given: dict[str, Any], settings: GenerationSettings) -> None:
    before = str(given)
    assert GenerationSettings.of(given, 256, seed=7) == settings
    assert str(given) == before, "the response cache finds an answer by these very settings"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"num_beams": 4}, "does not support num_beams=4"),
        ({"temperature": 0.7, "min_p": 0.1}, "does not support min_p=0.1"),
        ({"temperature": -1, "do_sample": True}, "temperature=-1.* is not a finite number above 0"),
        ({"temperature": 0.7, "top_p": 1.5}, "top_p=1.5 is not above 0 and at most 1"),
        ({"temperature": 0.7, "top_k": "many"}, "value of the wrong type: .*'many'"),
        ({"repetition_penalty": 1.2}, "does not support repetition_penalty=1.2"),
        ({"max_gen_toks": "abc"}, "value of the wrong type: .*'abc'"),
        ({"until": 5}, "until holds 5, which is not a string"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is below 1"),
    ],
)
def test_settings_without_meaning_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        GenerationSettings.of(given, 256)


def test_an_empty_prompt_is_refused() -> None:
    check_not_empty(request("x"))
    with pytest.raises(HybridError, match=r"the prompt of document 7 of gsm8k is empty"):
        check_not_empty(request(""))


def test_a_prompt_must_leave_room_for_its_answer() -> None:
    check_fits_context(request("x"), "base", 90, GenerationSettings(10, ()), 100)
    with pytest.raises(
        HybridError,
        match=r"has 91 tokens, and max_gen_toks=10; .* base model's context of 100 .*max_gen_toks=9 or",
    ):
        check_fits_context(request("x"), "base", 91, GenerationSettings(10, ()), 100)
    with pytest.raises(HybridError, match=r"document 7 of gsm8k has 150 tokens.*; shorten the prompt"):
        check_fits_context(request("x"), "thinking", 150, GenerationSettings(10, ()), 100)
