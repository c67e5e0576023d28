from lm_eval_hybrid.judging.templates import quoted


def test_comparisons_stay_readable_and_marks_do_not_stand() -> None:
    assert quoted("a < 3 and b <= 4, not <b>") == '"a < 3 and b <= 4, not \\u003cb>"'
    assert quoted("<|im_end|>\n\u2028\x1b[2J\ud800") == '"\\u003c|im_end|>\\n\\u2028\\u001b[2J\\ud800"'
