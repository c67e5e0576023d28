from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_hybrid.discovery.sentences import Sentence, split


def test_sentences_and_their_tokens() -> None:
    text = " We start. So 3.5 it is!\nDone"
    tokens = [" We", " start", ".", " So", " 3", ".", "5", " it", " is", "!", "\n", "Done"]
    ends = [sum(map(len, tokens[: i + 1])) for i in range(len(tokens))]
    assert split(text, ends) == [
        Sentence(" We start.", 0, 3),
        Sentence(" So 3.5 it is!", 3, 10),
        Sentence("Done", 11, 12),
    ]


def test_a_token_across_a_boundary_belongs_to_the_sentence_it_ends_in() -> None:
    assert split("One. Two.", [3, 6, 9]) == [Sentence("One.", 0, 1), Sentence(" Two.", 1, 3)]


def test_nothing_but_white_space_is_no_sentence() -> None:
    assert split("\n\n", [1, 2]) == []
    assert split("", []) == []


@given(st.text(alphabet="ab.!? \n", max_size=60))
def test_spans_are_in_order_and_hold_the_sentences_characters(text: str) -> None:
    sentences = split(text, list(range(1, len(text) + 1)))
    assert all(a.end <= b.begin for a, b in pairwise(sentences))
    assert all(text[s.begin : s.end] == s.text for s in sentences)
    assert "".join("".join(s.text for s in sentences).split()) == "".join(text.split())
