from dataclasses import replace
from typing import Any

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS, Policy, policy_for

POLICY = Policy(coefficients=(0.5, 1.0), windows=(1, 0), gate_rate=0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gate": "sometimes"}, "gate"),
        ({"select": "best"}, "select"),
        ({"coefficients": ()}, "coefficients"),
        ({"coefficients": (float("nan"),)}, "coefficients"),
        ({"windows": ()}, "windows"),
        ({"windows": (-1,)}, "windows"),
        ({"gate": "random", "gate_rate": None}, "gate_rate"),
        ({"gate": "random", "gate_rate": 1.5}, "gate_rate"),
        ({"select": "fixed"}, "fixed"),
        ({"select": "mlp"}, "mlp"),
    ],
)
def test_invalid_policies_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(HybridError, match=named) as error:
        replace(POLICY, **change)
    assert "\n" not in str(error.value)


def test_lists_and_tuples_make_equal_policies() -> None:
    assert Policy(coefficients=[0.5, 1], windows=[1, 0], gate_rate=0.1) == POLICY


def test_only_models_that_decide_are_read() -> None:
    def reads(**change: Any) -> tuple[bool, bool, bool]:
        policy = replace(POLICY, **change)
        return policy.reads_base, policy.reads_thinking, policy.steers

    assert reads() == (True, True, True)
    assert reads(gate="never") == (True, False, False)
    assert reads(gate="always", emit="thinking") == (False, True, False)
    assert reads(emit="thinking") == (True, True, False)
    assert reads(gate="always", category="random", select="random") == (True, False, True)
    assert reads(gate="always", category="random", select="guardrail") == (True, True, True)


def test_every_arm_differs() -> None:
    assert len({policy_for(arm, POLICY) for arm in ARMS}) == len(ARMS) == 9
    assert policy_for("hybrid", POLICY) == POLICY


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(HybridError, match=r"'oracle' is unknown.*takeover"):
        policy_for("oracle", POLICY)


def test_random_positions_need_a_rate() -> None:
    with pytest.raises(HybridError, match="gate_rate"):
        policy_for("random-positions", replace(POLICY, gate_rate=None))
