"""When two answers are equal, kind by kind."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.scoring.equality import names, same

EQUAL = {
    "numbers": [
        ("31", "31"),
        ("31.00", "31"),
        ("1,234.50", "1234.5"),
        ("114200", "114,200"),
        ("9 500", "9500"),
        (r"10,\!080", "10080"),
        (r"11{,}000", "11000"),
        (r"7,\! 654,\! 321", "7654321"),
        ("−3", "-3"),  # noqa: RUF001
        (".5", "0.5"),
        (r"4.5 \times 10^{3}", "4500"),
        (r"7.2 \cdot 10^{-4}", "0.00072"),
        ("1.2e3", "1200"),
        (r"0.\overline{3}", r"\frac13"),
        ("0.333333", r"\frac{1}{3}"),
        ("three", "3"),
    ],
    "money, percent and units": [
        (r"\$1.50", "1.5"),
        ("$20", r"\$20"),
        (r"50\%", "50"),
        ("50%", "0.5"),
        ("0.5", r"50\%"),
        ("12 percent", "12"),
        (r"14\mbox{ cm}^2", "14"),
        ("14 square centimeters", r"14\text{ cm}^2"),
        (r"35^\circ", "35"),
        ("35 degrees", r"35^{\circ}"),
        ("2600g", "2600"),
        ("7 crates", "7"),
        ("31 crates of 12", "31"),
        ("1,000.99m²", "1000.99"),
        (r"9\pi \text{ square units}", r"9\pi"),
        ("5 dozen", "60"),
        (r"4^{\text{th}} \text{ place}", "4"),
    ],
    "fractions": [
        ("3/4", r"\frac{3}{4}"),
        (r"\dfrac34", "0.75"),
        (r"\frac 7{10}", "0.7"),
        (r"2\frac{1}{2}", "5/2"),
        ("2 1/2", "2.5"),
        ("2 and 1/2", "2.5"),
        (r"\frac{6}{8}", r"\tfrac{3}{4}"),
    ],
    "expressions": [
        ("1+x", "x+1"),
        ("p-q", "p - q"),
        (r"\sqrt{12}", r"2\sqrt 3"),
        ("sqrt(3)/3", r"\frac{1}{\sqrt{3}}"),
        ("2√3", r"2\sqrt{3}"),
        ("5π", r"5\pi"),
        (r"\frac{\cos x}{\sin x}", r"\cot x"),
        ("(b+2)(a+5)", "(a+5)(b+2)"),
        ("x^{2}+2x+1", "(x+1)^2"),
        ("3i - 2", "-2+3i"),
        (r"\binom{5}{2}", "10"),
        ("2^{10}", "1024"),
        (r"\left( \frac{1}{2} \right)^{2}", "0.25"),
        (r"\tan 45^\circ", "1"),
        ("exp(16) - 1", "e^{16} - 1"),
        ("5**(1/2)", r"\sqrt{5}"),
        (r"+\infty", r"\infty"),
        ("20 + 18 + 25", "63"),
    ],
    "equations": [
        ("x=5", "5"),
        ("5", "x=5"),
        ("$x = 5$", "5"),
        ("f(2) = 3 + 4 = 7", "7"),
        ("y = 3 + 2x", "y = 2x + 3"),
        ("2x+3", "y = 2x + 3"),
        ("-2x + 3y - 5 = 0", "2x - 3y + 5 = 0"),
        (r"n \equiv 4 \pmod{9}", "4"),
        ("2/3 ≈ 0.667", "2/3"),
        ("(3,2)", "(p,q)=(3,2)"),
        ("1", "|AB|=1"),
    ],
    "bases": [
        ("1203", "1203_4"),
        ("1203_{4}", "1203_4"),
        ("1203 base 4", "1203_4"),
        (r"1203_{\text{four}}", "1203_4"),
        (r"1203_{(4)}", "1203_4"),
    ],
    "intervals": [
        ("[2, 7)", "[2,7)"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"-2 \le x \le 7", "[-2,7]"),
        ("x > 5", r"(5,\infty)"),
        ("(5, ∞)", r"(5,\infty)"),
        (r"(3,\infty) \cup (-\infty,2)", r"(-\infty,2)\cup(3,\infty)"),
        (r"x < 2 \text{ or } x > 3", r"(-\infty,2)\cup(3,\infty)"),
        (r"(-∞, 2) U (3, ∞)", r"(-\infty,2)\cup(3,\infty)"),
    ],
    "tuples": [
        (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        ("x = 3, y = 4", "(3,4)"),
        (r"\langle 1, 2 \rangle", "(1,2)"),
        ("(a, b) = (1, 2)", "(1,2)"),
    ],
    "lists and sets": [
        ("3, 5", "5,3"),
        (r"\{5, 3\}", r"\{3,5\}"),
        ("3 and 5", "3,5"),
        ("3, 5, and 7", "7,5,3"),
        (r"3 \text{ and } 5", "3,5"),
        (r"x = 3 \text{ or } x = 5", "3,5"),
        (r"2 + \sqrt{7}, 2 - \sqrt{7}", r"2 \pm \sqrt{7}"),
        (r"\{-1, 1 - \sqrt 2, 1 + \sqrt 2\}", r"\{1\pm\sqrt{2},-1\}"),
    ],
    "matrices": [
        (r"\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
        (r"\begin{pmatrix} \frac12 \\ 0.2 \end{pmatrix}", r"\begin{pmatrix} 1/2 \\ 1/5 \end{pmatrix}"),
        ("(1, 2, 3)", r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}"),
    ],
    "times": [("6:30", "6:30 PM"), ("6:30 p.m.", "6:30 PM")],
    "choices": [
        ("C", r"\text{(C)}"),
        ("(C)", "C"),
        ("(C) Plane", r"\text{(C)}"),
        ("C. Plane", r"\text{(C)}"),
        ("Option C", r"\text{(C)}"),
        (r"\textbf{(C)}", r"\text{(C)}"),
    ],
    "words": [
        ("Marta", r"\text{Marta}"),
        (r"\text{even}", "Even"),
        ("an ellipse", r"\text{ellipse}"),
        ("due east", "east"),
        ("**Marta**", "Marta"),
        ("no solution", r"\text{no real solutions}"),
        (r"\emptyset", r"\varnothing"),
    ],
}
UNEQUAL = {
    "numbers": [
        ("3", "4"),
        ("-5", "5"),
        ("10080.5", r"10,\!080"),
        ("0.33", r"\frac13"),
        ("0.00007", ".00006"),
        ("10000.01", "10000.02"),
        ("0.333334", r"\frac{1}{3}"),
        ("10^{-20}", "10^{-21}"),
        ("4^{-60}", "4^{-61}"),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        ("", "1"),
    ],
    "money, percent and units": [("0.5", "50"), ("50%", "5"), ("5x", "5"), ("19x", "19"), ("3 or 4", "3")],
    "expressions": [
        ("p+q", "p-q"),
        ("2", "2k"),
        (r"\sqrt{3}", r"\sqrt{5}"),
        (r"\frac{\sin 20^\circ}{128}", r"\frac{9}{256}"),
    ],
    "equations": [("x=4", "5"), ("x=5", "y=5"), ("5x - 7y + 5 = 0", "5x - 7y + 4 = 0"), ("3", "2x + y = 3")],
    "bases": [("1203_5", "1203_4"), ("1204", "1203_4"), ("99", "1203_4")],
    "intervals": [("[2,3)", "(2,3)"), ("[2,3)", "[2,3]"), (r"x \ge 5", r"(5,\infty)"), ("2,3", "[2,3]")],
    "tuples": [("(3,2)", "(2,3)"), ("(1,2)", r"\{1,2\}"), ("(1,2,3)", "(1,2)")],
    "lists and sets": [("3", "3,5"), ("3,5", "3"), ("3,6", "3,5"), (r"2 + \sqrt{7}", r"2 \pm \sqrt{7}"), ("1", "1,-2")],
    "matrices": [
        (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix} 1 & 0 \\ 0 & -1 \end{pmatrix}"),
        ("(2, 1, 3)", r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}"),
    ],
    "times": [("7:30", "6:30"), ("6:30 AM", "6:30 PM")],
    "choices": [("B", r"\text{(C)}"), ("A line", "(C)"), ("Circle", "(C)")],
    "words": [
        ("odd", "even"),
        ("not even", "even"),
        ("even or odd", "even"),
        ("Marta", "Marten"),
        ("one solution", "no solution"),
    ],
}


def _cases(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    return [pytest.param(*pair, id=f"{kind}: {pair[0]} | {pair[1]}") for kind, pairs in table.items() for pair in pairs]


@pytest.mark.parametrize(("answer", "truth"), _cases(EQUAL))
def test_equal(answer: str, truth: str) -> None:
    assert same(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), _cases(UNEQUAL))
def test_unequal(answer: str, truth: str) -> None:
    assert not same(answer, truth)


WRAPPINGS = st.sampled_from(
    [
        "{}",
        "${}$",
        r"\({}\)",
        r"\[ {} \]",
        r"\text{{{}}}",
        r"\left. {} \right.",
        "**{}**",
        "{}.",
        " {} ",
        r"\displaystyle {}",
    ]
)
UNITS = st.sampled_from(["", " apples", r"\text{ cm}", r"\,\text{m}^2", " dollars per week", r"\text{ degrees}"])


@given(number=st.integers(-99_999, 99_999), wrapping=WRAPPINGS, unit=UNITS, other=st.integers(1, 50))
def test_typesetting_and_units_change_nothing(number: int, wrapping: str, unit: str, other: int) -> None:
    answer = wrapping.format(f"{number}{unit}" if "text" not in wrapping else number)
    assert same(answer, str(number))
    assert same(f"x = {number}", str(number)) and same(f"{number:,}", str(number)) and same(f"{number}.00", str(number))
    assert not same(answer, str(number + other))


@given(numbers=st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), data=st.data())
def test_lists_have_no_order_and_tuples_have_one(numbers: list[int], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(numbers))
    mine, its = (", ".join(map(str, each)) for each in (shuffled, numbers))
    assert same(mine, its) and same(rf"\{{{mine}\}}", rf"\{{{its}\}}")
    assert same(f"({mine})", f"({its})") == (shuffled == numbers)


TRUTHS = [
    "5",
    "x+1",
    r"\frac{1}{2}",
    "(1,2)",
    r"\{1,2\}",
    "[1,2)",
    "even",
    "(C)",
    "12_5",
    r"1 \pm \sqrt{2}",
    "y = x",
    "",
]


@given(
    answer=st.text(st.sampled_from("12 x=+-*/^_{}()[],.:\\$%<>|abe\ntimesfracsqrtpm"), max_size=25),
    truth=st.sampled_from(TRUTHS),
)
@settings(deadline=None, max_examples=150)
def test_nothing_raises(answer: str, truth: str) -> None:
    assert same(answer, truth) in (True, False)
    assert names(answer, truth) in (True, False)


def test_absurd_answers_are_unequal_at_once() -> None:
    assert not same("9" * 300_000, "9")
    assert not same("(" * 5_000, "(")
    assert not same("a" * 3_999 + "!", "5")
    assert not same("crates" * 600, "crates of 5")


def test_threads_compare_at_once() -> None:
    found: dict[int, list[bool]] = {}

    def compare(k: int) -> None:
        found[k] = [same(f"{k}x + {n}", f"{n} + {k}x") for n in range(2, 6)] + [same(f"{k}x + 1", f"{k}x + 2")]

    threads = [threading.Thread(target=compare, args=(k,)) for k in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: [True] * 4 + [False] for k in range(2, 6)}


@pytest.mark.parametrize(
    ("sentence", "truth", "named"),
    [
        ("Marta earns the most of the three, 39 a day.", r"\text{Marta}", True),
        ("Marta does not earn the most.", "Marta", False),
        ("Pia earns more than Marta.", "Marta", False),
        ("Therefore, it is choice (C), a plane.", r"\text{(C)}", True),
        ("Both (B) and (C) might be.", r"\text{(C)}", False),
        ("It is 5.", "5", False),
    ],
)
def test_a_sentence_may_name_words(sentence: str, truth: str, named: bool) -> None:
    assert names(sentence, truth) is named
