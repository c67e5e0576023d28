"""Model arguments: ours told from HFLM's, and the policy they make of a bundle's."""

from typing import Any

import pytest
from lm_eval.utils import simple_parse_args_string

from lm_eval_hybrid.bundles.manifest import SteeringSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.harness.arguments import HybridArguments

STEERING = SteeringSpec(layer=2, coefficients=(0.5, 1.0), windows=(1, 8), gate_rate=0.1)


def policy(**given: Any) -> Policy:
    return HybridArguments(**given).policy(STEERING)


def test_nothing_given_is_the_bundles_policy() -> None:
    ours, theirs = HybridArguments.split({"dtype": "float32", "batch_size": 4, "device": None})
    assert ours == HybridArguments(behaviors="embedded", arm="hybrid")
    assert theirs == {"dtype": "float32", "batch_size": 4, "device": None}
    assert ours.policy(STEERING) == Policy((0.5, 1.0), (1, 8), gate_rate=0.1)


@pytest.mark.parametrize(
    "given",
    [
        simple_parse_args_string("coefficients=0.5:2,windows=8:0"),
        {"coefficients": [0.5, 2], "windows": [8, 0]},
        {"coefficients": ("0.5", "2"), "windows": "8:0"},
    ],
)
def test_lists_in_every_form(given: dict[str, Any]) -> None:
    assert policy(**given).coefficients == (0.5, 2.0)
    assert policy(**given).windows == (8, 0)


def test_one_number_is_a_list_of_one() -> None:
    given = simple_parse_args_string("coefficients=1.5,windows=0,select=fixed")
    assert policy(**given) == Policy((1.5,), (0,), select="fixed", gate_rate=0.1)


def test_the_arm_changes_the_policy_last() -> None:
    assert policy(arm="random-positions").gate == "random"
    assert policy(arm="takeover", gate="always", seed=7) == Policy(
        (0.5, 1.0), (1, 8), gate="always", emit="thinking", gate_rate=0.1, seed=7
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"arm": "hybird"}, "arm='hybird' is unknown; choose one of base, hybrid, "),
        ({"thinking_prompt": "yes"}, "thinking_prompt='yes' is unknown; choose one of auto, raw, chat"),
        ({"seed": "x"}, "seed='x' is not an integer"),
        ({"coefficients": "a:b"}, "coefficients='a:b' are not numbers separated by colons"),
        ({"windows": "1:0.5"}, "windows=.* are not integers"),
        ({"gate": "sometimes"}, "gate='sometimes' is unknown"),
        ({"arm": "base", "gate": "always"}, "gate=always contradicts arm=base, which sets gate=never"),
        (
            {"arm": "random-select", "select": "guardrail"},
            "select=guardrail contradicts arm=random-select",
        ),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        policy(**given)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"behaviours": "x"}, "behaviours=x is not an argument of model hybrid; did you mean behaviors="),
        ({"window": 8}, "did you mean windows="),
        ({"pretrained": "gpt2"}, "pretrained=gpt2 is not supported by model hybrid; name the models with base="),
        ({"think_end_token": "</think>"}, "think_end_token=</think> is not supported"),
        (
            {"mixed_precision_dtype": "bfloat16"},
            "mixed_precision_dtype=.* is not supported .*; set dtype=",
        ),
        ({"softmax_dtype": "float32"}, "softmax_dtype=.* is not supported"),
        ({"backend": "seq2seq"}, "backend=seq2seq is not supported: model hybrid needs causal models"),
    ],
)
def test_misspelt_and_unfit_arguments_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HybridError, match=complaint):
        HybridArguments.split(given)


def test_other_arguments_pass_on_to_the_model() -> None:
    given = {"attn_implementation": "eager", "trust_remote_code": True, "backend": "causal", "arm": "base"}
    ours, theirs = HybridArguments.split(given)
    assert (ours.arm, theirs) == (
        "base",
        {"attn_implementation": "eager", "trust_remote_code": True, "backend": "causal"},
    )


def test_devices_are_ours() -> None:
    ours, theirs = HybridArguments.split({"base_device": "cuda:1", "device": "cuda"})
    assert (ours.base_device, ours.thinking_device, theirs) == ("cuda:1", None, {"device": "cuda"})
    with pytest.raises(HybridError, match="did you mean thinking_device="):
        HybridArguments.split({"thinkin_device": "cpu"})
