import io
from pathlib import Path

import pytest
from rich.console import Console

from lm_eval_hybrid.judging.verdicts import Agreement
from lm_eval_hybrid.report.terminal import agreement_table, comparison_table, duration
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.outputs import read
from lm_eval_hybrid.results.statistics import difference, gap
from tests.results.outputs import PLAIN, STEERED, samples, write

BASE = [1] * 30 + [0] * 70
HYBRID = [1] * 85 + [0] * 15
THINKING = [1] * 95 + [0] * 5


def shown(folder: Path, seed: int = 0) -> str:
    """The table as piped, with each run of blanks collapsed into one."""
    console = Console(width=100, file=io.StringIO(), highlight=False)
    runs = read(folder)
    console.print(comparison_table(compare(runs, seed), runs, seed))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def test_rows_of_a_task(tmp_path: Path) -> None:
    tokens = [STEERED] * 50 + [PLAIN] * 50
    write(tmp_path, "thinking", {"toy": samples(THINKING)}, tokens=tokens, base_runs=False)
    write(tmp_path, "hybrid", {"toy": samples(HYBRID)}, tokens=tokens)
    write(tmp_path, "base", {"toy": samples(BASE)}, hybrid_totals={"tokens_per_second": 1234.5})
    lines = shown(tmp_path).splitlines()
    start = lines.index("toy")
    assert lines[start + 1] == "base 30.0% [21.9, 39.6] - - - 1,234 100"
    assert lines[start + 2].startswith("hybrid 85.0% [76.7, 90.7] +84.6% [+")
    assert lines[start + 2].endswith("] 33.3% 22.2% 200 100")
    assert lines[start + 3] == "thinking 95.0% [88.8, 97.8] - 33.3% - 200 100"


def test_differences_from_hybrid(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples(HYBRID)})
    write(tmp_path, "bias-only", {"toy": samples(BASE)})
    # The hybrid alone is right 5 times, the other 2 times: p is 2 (1 + 7 + 21) / 2^7, which Holm leaves as the largest.
    write(tmp_path, "takeover", {"toy": samples([1] * 80 + [0] * 5 + [1] * 2 + [0] * 13)})
    text = shown(tmp_path)
    assert "toy: hybrid minus each arm, in points of accuracy [95%], McNemar's p (Holm)" in text
    found, close = difference(HYBRID, BASE), difference(HYBRID, [1] * 80 + [0] * 5 + [1] * 2 + [0] * 13)
    assert f"bias-only +55.0 [{100 * found.low:+.1f}, {100 * found.high:+.1f}] p <0.001" in text
    assert f"takeover +3.0 [{100 * close.low:+.1f}, {100 * close.high:+.1f}] p 0.453" in text


def test_an_arm_that_hurts_is_negative(tmp_path: Path) -> None:
    for arm, scores in (("base", BASE), ("random-category", [1] * 10 + [0] * 90), ("thinking", THINKING)):
        write(tmp_path, arm, {"toy": samples(scores)})
    found = gap(BASE, [1] * 10 + [0] * 90, THINKING)
    row = f"random-category 10.0% [5.5, 17.4] -30.8% [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    assert found.high < 0
    assert row in shown(tmp_path)


def test_cells_of_undefined_gaps_give_the_reason(tmp_path: Path) -> None:
    for arm, scores in (("base", THINKING), ("hybrid", HYBRID), ("thinking", BASE)):
        write(tmp_path, arm, {"inverted": samples(scores)})
    few = {"base": [0, 0, 1, 0], "hybrid": [1, 0, 1, 0], "thinking": [1, 1, 0, 0]}
    for arm, scores in few.items():
        write(tmp_path, arm, {"few": samples(scores)})
    write(tmp_path, "hybrid", {"alone": samples([1])})
    text = " ".join(shown(tmp_path).split())
    # The cell wraps, so the rest of its row comes after its first line.
    assert "undefined: thinking is" in text
    assert "not above base" in text
    assert "+100.0% no interval:" in text
    assert "undefined: base and" in text and "thinking were not" in text


def test_the_footer_gives_the_provenance(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1])})
    text = shown(tmp_path, seed=3)
    assert "bundle: embedded@1.0.0#0123456789ab" in text
    assert "models: base embedded:base@000000000000; thinking not recorded" in text
    assert "seeds: decoding 7; bootstrap 3 (10,000 resamples)" in text
    assert (
        "versions: lm_eval_hybrid 0.1.0, lm_eval 0.4.13, torch 2.13.0+cpu, transformers 5.23.0, nnsight 0.8.1"
    ) in text


def test_footer_names_what_differs_between_runs(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1])}, hybrid_nnsight_version=None)
    write(tmp_path, "hybrid", {"toy": samples([1])}, hybrid_bundle="other@2.0.0#ba9876543210")
    policy = {"gate": "never", "coefficients": [2.0], "emit": "candidate"}
    write(tmp_path, "bias-only", {"toy": samples([1])}, hybrid_policy=policy | {"gate": "always"})
    write(tmp_path, "base", {"other": samples([1])}, hybrid_policy=policy, hybrid_base="another")
    text = " ".join(shown(tmp_path).split())
    assert "gate always and disagreement (runs differ), coefficients [0.5, 1.0] and [2.0] (runs differ)" in text
    assert "models: base another and embedded:base@000000000000 (runs differ); thinking embedded:thinking@1" in text
    assert "bundle: embedded@1.0.0#0123456789ab and other@2.0.0#ba9876543210 (runs differ)" in text
    assert "nnsight 0.8.1 and not recorded (runs differ)" in text


@pytest.mark.parametrize("width", [60, 80])
def test_on_narrow_terminals_cells_wrap_and_nothing_is_cut(tmp_path: Path, width: int) -> None:
    for arm, scores in (("base", BASE), ("random-positions", HYBRID), ("thinking", THINKING)):
        write(tmp_path, arm, {"toy": samples(scores)})
    console = Console(width=width, file=io.StringIO())
    runs = read(tmp_path)
    console.print(comparison_table(compare(runs), runs, 0))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "+84.6%" in text


def test_arms_without_a_behavior_are_listed_below_the_table(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples(BASE)})
    write(tmp_path, "hybrid", {"toy": samples(HYBRID)}, tokens=[STEERED] * len(HYBRID))
    left_out = {"hybrid_without": ["compute"], "hybrid_bundle": "embedded@1.0.0#0123456789ab[check]"}
    write(tmp_path, "hybrid", {"toy": samples(BASE)}, tokens=[STEERED] * len(BASE), **left_out)
    text = " ".join(shown(tmp_path).split())
    assert "hybrid minus hybrid without a behavior" in text
    assert "compute (67%) +" in text
    assert "without compute" not in text
    assert "bundle: embedded@1.0.0#0123456789ab models" in text


def test_agreement_has_a_row_for_each_model_and_shows_its_name_unchanged() -> None:
    console = Console(width=100, file=io.StringIO(), highlight=False)
    found = {"gsm8k_hybrid base [red]": Agreement(3, 1, 1, 2, 3), "math500_hybrid base": Agreement(1200, 0, 0, 0)}
    console.print(agreement_table(found | {"empty": Agreement(0, 0, 0, 0, 5)}, "gpt-4.1 at [b]https://host/v1"))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "model rule right judge right agree kappa only rule only judge unclear" in lines
    assert "gsm8k_hybrid base [red] 57.1% 71.4% 57.1% 0.087 1 2 3" in lines
    assert "math500_hybrid base 100.0% 100.0% 100.0% - 0 0 0" in lines
    assert "empty - - - - 0 0 5" in lines
    assert any("judge: gpt-4.1 at [b]https://host/v1" in line for line in lines)


def test_durations_have_two_units() -> None:
    assert [duration(seconds) for seconds in (0.44, 9.96, 59.6, 3599.4, 18_600)] == [
        *("0.4 s", "10 s", "1 min 00 s", "59 min 59 s", "5 h 10 min"),
    ]
