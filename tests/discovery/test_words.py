import pytest

from lm_eval_hybrid.discovery.taxonomy import words as module
from lm_eval_hybrid.discovery.taxonomy.words import said


def test_words_signs_and_numbers_are_asked_for() -> None:
    learned, held_out = said(["So 3 + 4.", "So 17!", "Wait"], ["so, 5", "never"])
    # Twice or more: so, number.
    assert learned.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert held_out.tolist() == [[1, 1], [0, 0]]


def test_the_most_frequent_words_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS", 1)
    learned, _ = said(["a b", "b a", "b"], [])
    assert learned.tolist() == [[1], [1], [1]]


def test_no_frequent_words_make_an_empty_table() -> None:
    learned, held_out = said(["one", "two"], ["three"])
    assert learned.shape == (2, 0) and held_out.shape == (1, 0)


def test_of_equally_frequent_words_the_first_met_comes_first() -> None:
    """Whatever a run's hashes are."""
    asked = list("kigecaljhfdb")
    _, held_out = said([" ".join(asked)] * 2, asked)
    assert held_out.argmax(-1).tolist() == list(range(12))
