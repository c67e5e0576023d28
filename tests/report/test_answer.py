import io
from pathlib import Path

import pytest
from rich.console import Console

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.report.answer import PALETTE, PROMPT_SHOWN, ShownAnswer, choose, render
from lm_eval_hybrid.results.outputs import read
from lm_eval_hybrid.results.runs import RecordedAnswer
from tests.results.outputs import PLAIN, STEERED, Token, records, samples, write

ONE: tuple[Token, ...] = ((" So", "compute", True), (" 4", None, False))


def answer(tokens: tuple[Token, ...], prompt: str = "Question: 2+2?\nAnswer:", finish: str = "stop") -> ShownAnswer:
    text = "".join(text for text, _, _ in tokens)
    return ShownAnswer(
        RecordedAnswer(3, "toy", "hybrid", prompt, text, finish, {}, tuple(records(tokens))), True, False
    )


def drawn(shown: ShownAnswer, colour: bool = False, width: int = 100) -> str:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(render(shown, colour))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_colour_steered_tokens_are_in_brackets() -> None:
    assert drawn(answer(STEERED)).splitlines() == [
        "toy, document 3: base wrong, hybrid right",
        "",
        "Question: 2+2?",
        "Answer: [compute: So 4] apples. [check: Check] it",
        "",
        "steered: 3 of 6 tokens",
        "[compute] 2   [check] 1",
    ]


def test_a_steered_line_break_is_spelled_out() -> None:
    tokens = ((" 4", None, False), ("\n", "check", True), ("So", None, False))
    assert "Answer: 4[check: \\n]\nSo" in drawn(answer(tokens))


def test_colour_marks_only_steered_words() -> None:
    text = drawn(answer(STEERED), colour=True)
    red, green, blue = (int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5))
    on = f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"
    assert f" {on}So 4\x1b[0m apples. " in text
    assert f"{on} compute \x1b[0m 2" in text
    assert "\x1b[2mQuestion: 2+2?\x1b[0m" in text
    assert "[compute" not in text


def test_black_is_readable_on_every_colour_and_every_colour_on_black_and_white() -> None:
    assert len(set(PALETTE)) == len(PALETTE)
    for colour in PALETTE:
        assert (luminance(colour) + 0.05) / 0.05 >= 7  # WCAG AAA
        assert 1.05 / (luminance(colour) + 0.05) >= 1.2


def test_more_behaviors_than_colours_are_all_in_the_legend() -> None:
    tokens = tuple((" x", f"behavior-{i}", True) for i in range(len(PALETTE) + 3))
    text = drawn(answer(tokens), colour=True)
    assert all(f" behavior-{i} " in text for i in range(len(PALETTE) + 3))


def test_long_prompts_are_cut_to_their_end_and_the_title_says_that_the_answer_was_cut() -> None:
    text = drawn(answer(PLAIN, prompt="shot " * PROMPT_SHOWN + "Question: 2+2?\nAnswer:", finish="length"))
    assert "[...] " in text
    assert len(text) < PROMPT_SHOWN + 300
    assert "Question: 2+2?\nAnswer: 4 apples." in text
    assert "hybrid right, cut at the token limit" in text
    assert "steered: 0 of 3 tokens" in text


def test_markup_and_control_characters_have_no_effect() -> None:
    tokens = (("[bold]\x1b[31m", "compute", True), ("[/bold]\x07", None, False))
    text = drawn(answer(tokens))
    assert "[compute: [bold]\ufffd[31m][/bold]\ufffd" in text
    assert "\x1b" not in text


def test_chooses_what_only_hybrid_gets_right_with_most_behaviors(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0, 0, 0])})
    write(tmp_path, "hybrid", {"toy": samples([1, 0, 1, 1])}, tokens=[STEERED, STEERED, ONE, STEERED])
    found = choose(read(tmp_path))
    assert found.answer.doc_id == 3
    assert (found.right, found.base_right) == (True, False)


def test_chooses_the_shortest_of_equals_across_tasks(tmp_path: Path) -> None:
    write(tmp_path, "base", {"a": samples([0, 0]), "b": samples([0])})
    write(tmp_path, "hybrid", {"a": samples([1, 1])}, tokens=[STEERED + PLAIN, STEERED + PLAIN])
    write(tmp_path, "hybrid", {"b": samples([1])}, tokens=[STEERED])
    assert (choose(read(tmp_path)).answer.task, choose(read(tmp_path)).answer.doc_id) == ("b", 0)


def test_chooses_a_right_answer_where_hybrid_gains_nowhere(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([0, 1])}, tokens=[STEERED, ONE])
    found = choose(read(tmp_path))
    assert (found.answer.doc_id, found.right, found.base_right) == (1, True, None)
    assert "toy, document 1: hybrid right\n" in drawn(found)


def test_chooses_nothing_without_token_records(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1])})
    write(tmp_path, "base", {"toy": samples([0])}, tokens=[PLAIN])
    assert choose(read(tmp_path)) is None


def test_a_document_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"a": samples([0, 1]), "b": samples([1, 0])}, tokens=[STEERED, ONE])
    runs = read(tmp_path)
    assert (choose(runs, "0").answer.task, choose(runs, "0").answer.doc_id) == ("a", 0)
    assert (choose(runs, "b:1").answer.task, choose(runs, "b:1").answer.doc_id) == ("b", 1)
    with pytest.raises(HybridError, match="has no document 'b:7'"):
        choose(runs, "b:7")
