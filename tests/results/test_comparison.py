"""Figures of made-up runs, told apart from one another by hand or by a library."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.comparison import TaskComparison, compare
from lm_eval_hybrid.results.outputs import read
from lm_eval_hybrid.results.statistics import difference, gap
from tests.results.outputs import PLAIN, STEERED, samples, write

BASE = [1, 0, 0, 0, 0, 0, 0, 1, 0, 0]
HYBRID = [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]
THINKING = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def compared(folder: Path, **arms: list[int]) -> TaskComparison:
    for arm, scores in arms.items():
        tokens = [STEERED if arm == "hybrid" and i < 4 else PLAIN for i in range(len(scores))]
        write(folder, arm.replace("_", "-"), {"toy": samples(scores)}, tokens=tokens)
    (found,) = compare(read(folder), seed=3)
    return found


def test_figures_are_those_of_the_scores(tmp_path: Path) -> None:
    found = compared(tmp_path, base=BASE, hybrid=HYBRID, thinking=THINKING, bias_only=BASE)
    hybrid, bias = found.arm("hybrid"), found.arm("bias-only")
    assert found.documents == 10
    assert found.missing == ()
    assert hybrid.gap == gap(BASE, HYBRID, THINKING, seed=3)
    assert bias.gap.recovered == 0
    assert found.arm("base").gap is None
    assert hybrid.against is None
    assert bias.against.difference == difference(HYBRID, BASE, seed=3)
    assert (bias.against.test.better, bias.against.test.worse) == (7, 1)
    assert bias.against.test.p == pytest.approx(binomtest(7, 8).pvalue)


def test_tests_are_adjusted_for_one_another(tmp_path: Path) -> None:
    found = compared(tmp_path, base=BASE, hybrid=HYBRID, thinking=THINKING)
    ps = {arm: found.arm(arm).against for arm in ("base", "thinking")}
    assert ps["base"].holm == pytest.approx(2 * ps["base"].test.p)
    assert ps["thinking"].holm == pytest.approx(max(ps["thinking"].test.p, 2 * ps["base"].test.p))


def test_shares_are_of_all_tokens_and_of_each_document(tmp_path: Path) -> None:
    hybrid = compared(tmp_path, hybrid=HYBRID).arm("hybrid")
    assert hybrid.steered.tokens == pytest.approx(4 * 3 / (4 * 6 + 6 * 3))
    assert hybrid.steered.documents == pytest.approx(4 * 0.5 / 10)
    assert (hybrid.length.mean, hybrid.length.median, hybrid.length.longest) == (4.2, 3, 6)
    assert (hybrid.truncated, hybrid.unfinished) == (0, None)


def test_behaviors_are_counted_in_tokens_and_in_documents(tmp_path: Path) -> None:
    first, second = compared(tmp_path, hybrid=HYBRID).behaviors
    assert (first.behavior, first.tokens, first.documents) == ("compute", 8, 4)
    assert (second.behavior, second.tokens, second.documents) == ("check", 4, 4)
    assert first.share == pytest.approx(2 / 3)
    assert first.left_out is None


def test_what_leaving_a_behavior_out_costs(tmp_path: Path) -> None:
    for key, scores in (("compute", BASE), ("check", HYBRID)):
        write(tmp_path, "hybrid", {"toy": samples(scores)}, tokens=[PLAIN] * 10, hybrid_without=[key])
    found = compared(tmp_path, base=BASE, hybrid=HYBRID, thinking=THINKING)
    compute, check = found.behaviors
    assert compute.left_out.difference == difference(HYBRID, BASE, seed=3)
    # Of the two that have one left out this is the smaller; the others are a family of their own.
    assert compute.left_out.holm == pytest.approx(2 * compute.left_out.test.p)
    assert check.left_out.difference.value == 0
    assert found.arm("without compute").against == compute.left_out
    assert found.arm("base").against.holm == pytest.approx(2 * found.arm("base").against.test.p)


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    found = compared(tmp_path, hybrid=HYBRID, base=BASE)
    assert found.missing == ("thinking",)
    assert found.arm("hybrid").gap is None
    write(tmp_path / "untold", "hybrid", {"toy": samples(HYBRID)})
    (untold,) = compare(read(tmp_path / "untold"))
    assert (untold.arm("hybrid").steered, untold.arm("hybrid").length, untold.arm("hybrid").truncated) == (None,) * 3


def test_other_documents_have_another_digest(tmp_path: Path) -> None:
    digests = set()
    for question in ("How many?", "How few?"):
        write(tmp_path / question, "base", {"toy": samples(BASE, question=question)})
        (found,) = compare(read(tmp_path / question))
        digests.add(found.digest)
    assert len(digests) == 2


def test_no_documents(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": []})
    with pytest.raises(HybridError, match="has no documents"):
        compare(read(tmp_path))
