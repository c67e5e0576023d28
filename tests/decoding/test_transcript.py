import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lm_eval_hybrid.decoding.tokens.transcript import Transcript


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, a few that cross the borders of characters, and the special `<s>`."""
    merges = [("Ã", "©"), ("©", "Ċ"), ("a", "Ċ")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<s>"]
    model = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<s>")


TOKENIZER = byte_tokenizer()
IDS = TOKENIZER.get_vocab()
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHER = [byte for byte in range(256) if byte not in PRINTABLE]
# Byte-level BPE writes a printable byte as itself, the others as the characters from 256 on.
BYTES = {byte: IDS[chr(byte)] for byte in PRINTABLE} | {byte: IDS[chr(256 + i)] for i, byte in enumerate(OTHER)}


def tokens_of(text: str) -> list[int]:
    """A token a byte."""
    return [BYTES[byte] for byte in text.encode()]


def pushed(tokens: list[int], *stop: str) -> Transcript:
    """All tokens, or those up to the one at which it says that a stop string is complete."""
    transcript = Transcript(TOKENIZER, stop)
    for token in tokens:
        if transcript.push([token]):
            break
    transcript.close()
    return transcript


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_pieces_join_to_the_decoded_whole(tokens: list[int]) -> None:
    transcript = pushed(tokens)
    assert transcript.text == "".join(transcript.pieces) == TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert len(transcript.pieces) == len(tokens)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab\n€é", max_size=40), st.lists(st.text(alphabet="ab\n€é", max_size=3), max_size=3))
def test_the_cut_is_at_the_first_stop_string_to_appear(text: str, stop: list[str]) -> None:
    transcript = pushed(tokens_of(text), *stop)
    ends = {i: s for i in range(len(text) + 1) for s in sorted(stop, key=len) if s and text[:i].endswith(s)}
    if not ends:
        assert transcript.cut is None
        assert "".join(transcript.kept()) == text
    else:
        first = min(ends)  # the longest of those that end here starts first
        assert transcript.cut == first - len(ends[first])
        assert "".join(transcript.kept()) == text[: transcript.cut]


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    assert pushed(tokens_of("a€b")).pieces == ["a", "", "", "€", "b"]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    assert pushed(tokens_of("a€")[:-1]).pieces == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_a_token_that_straddles_the_stop_string_is_kept_and_trimmed() -> None:
    transcript = pushed([BYTES[ord("x")], IDS["aĊ"], BYTES[ord("y")]], "\n")
    assert transcript.kept() == ["x", "a"]
    assert transcript.text == "xa\n"


def test_tokens_of_the_stop_string_are_dropped() -> None:
    assert pushed(tokens_of("one\n\ntwo"), "\n\n").kept() == ["o", "n", "e"]


@pytest.mark.parametrize("stop", [(), ("",)])
def test_without_stop_strings_nothing_is_cut(stop: tuple[str, ...]) -> None:
    assert pushed(tokens_of("abc"), *stop).kept() == ["a", "b", "c"]


def test_special_tokens_add_no_text() -> None:
    assert pushed([BYTES[ord("a")], IDS["<s>"], BYTES[ord("b")]]).pieces == ["a", "", "b"]


def test_the_cost_of_a_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding looks at a bounded number of tokens however long the answer is."""
    longest = 0
    decode = TOKENIZER.decode

    def counted(tokens: list[int], **options: bool) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens, **options)

    monkeypatch.setattr(TOKENIZER, "decode", counted)
    assert pushed(tokens_of("é€" * 400)).text == "é€" * 400
    assert longest < 40
