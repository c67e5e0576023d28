# ruff: noqa: RUF001  (stops and quotation marks of many scripts)
import json
import re
import time
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import groupby, islice, pairwise
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm_eval_hybrid.common import paths
from lm_eval_hybrid.discovery.traces.trace import SentenceSpan, split_sentences
from lm_eval_hybrid.embedded.corpus import Writer, base_document, documents, thinking_document
from tests.oracle.tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tests.shared_data import DATA
from tests.tiny_system import tiny_tokenizer

CUT = "§"
# Texts with CUT where one sentence ends and the next begins.
CASES = {
    "stops": [
        "We start.§ Then we add.§ Done",
        "Is it even?§ Yes!§ So we halve it.",
        "What?!§ No way.",
        "No stop at all",
        "  Indented.§  Twice.  ",
        "Done .§ Next , please",
        "Oh!§ that is it.",
    ],
    "numbers": [
        "Pi is 3.14 or so.§ And e is 2.718.",
        "It costs 1,250.75 dollars.§ The rest is .5 of it.",
        "In 1.000.000 cases.§ Version 2.0.1 is out.",
        "So 3 + 4 = 7.§ 7 is odd.§ x is then 4.",
        "There are 5! ways, and 5! = 120.",
        "So n! / (n-1)! is n.§ Also (n-1)! counts them.",
        "We need 4!.§ That is 24!§ So we stop.",
    ],
    "abbreviations": [
        "Use a tool, e.g. Python, i.e. code.§ Go.",
        "Mr. Smith met Dr. No vs. Mrs. Jones.§ They left.",
        "See Fig. 3 and Eq. (2).§ Both hold.",
        "As in Sec. 4.2, pp. 3, and No. 7 of Vol. 2.§ Fine.",
        "Is 9 prime?§ No.§ 9 is 3 squared.",
        "It is approx. 5 cm.§ OK.",
        "Apples, pears, etc. are fruit.§ Nuts, seeds, etc.§ They are not.",
        "By Cauchy et al. (1821).§ It holds.",
        "A box of 6 ft. by 4 ft. is large.",
        "He works from 8 a.m. to 5 p.m. daily.§ At 6 p.m.§ He rests.",
        "Add 5 ms.§ Then stop.",
        "On Jan. 5 it rained.",
    ],
    "names": [
        "J. K. Rowling wrote it.§ George W. Bush read it.",
        "The U.S. Army is in the U.S.§ The rest is not.",
        "Meet at point A.§ Then go to point B.§ C is next.",
        "First do Job A.§ Job B is second.",
        "Now, onto B.§ B is 5.",
        "A Ph.D. student came.",
    ],
    "ellipses": [
        "Hmm... let me think.§ So...§ Now it works.",
        "The sum 1 + 2 + ... + 9 is 45.",
        "It is 0.333..., or 1/3.§ We list 2, 4, ... 10 now.",
        "Well… maybe not.§ Well…§ Maybe.",
        "Wait. . .§ What?",
    ],
    "lists": [
        "1. First add.\n§2. Then halve.\n§\t10. Stop.§ Really.",
        "- a thing.§ More.\n§* another\n§• last",
        "a) one\n§b) two",
        "(i) small\n§ii. larger",
        "A. 5 apples\n§B. 6 apples",
        "**Step 1.** Read it.§ Step 2. Do it.",
        "### 3. Cost of pins\n§Five.",
        "Case 2. Suppose not.",
        "2.1. A subsection",
    ],
    "lines": [
        "A title\n§A line.\n\n§ \tAnother.  \n \n§End",
        "a line\r\n§another\u2028§third\x85§fourth",
        "First.§\u00a0Second.§\u3000Third.",
        "So we get\n---\n§the rest",
        "The end.\n\n***\n\n",
    ],
    "LaTeX": [
        r"Let $x. Y$ be \(a. B\) there.§ Then $y = 3.$§ Next.",
        "We get\n§\\[\nx = 1.\nY = 2. Z\n\\]\n§so it holds.",
        "$$a. B\n\nC$$ is whole.§ Yes.",
        "\\begin{align}\na &= 1. \\\\\nB &= 2\n\\end{align}\n§Next.",
        r"The price of \text{Mr. X and Co. Ltd} is \boxed{5}.§ Done.",
        r"It costs $5.§ He has $6 more.",
        r"He paid \$5.§ She paid \$7.§ Both paid.",
        r"An open \( a.§ B never closes.",
        r"An open \[ a.§ Then \[ b. C \] closes.",
        r"So \(x = 2\).§ \(y\) is 3.§ $z$ is 4.",
    ],
    "code": [
        "Run `a. B` now.§ OK.",
        "Write\n§```python\nx = 1. \nY = 'a. B'\n\nz = 2\n```\n§It runs.",
        "~~~\na. B\n```\nc. D\n~~~\n§Done.",
        "An open fence\n```\n§First.§ B\n§Last.§ D",
    ],
    "names of files and places": [
        "See https://a.example.com/b.html?c=1!d for it.§ Or mail me@b.org.",
        "Open data.csv and .gitignore in src/main.py.§ Then run it.",
    ],
    "quotes and brackets": [
        'He said "Stop."§ Then he left.',
        '"Why?" she asked.§ "Because."§ (It was so.)§ [Yes.]',
        "(Is it?§ Yes, it is.)",
        "It is so.”§ “Then go.”§ «Oui.»§ Bien.",
        "That is **it.**§ *Now* then.§ _So._§ End.",
    ],
    "tables": [
        "| a. | B. C | d |\n|----|------|---|\n§| e. | F. G | h |\n",
        "|x| = 5.§ So x = 5 or x = -5.",
    ],
    "scripts": [
        "我们开始。§然后是3.14！§对吗？§是。",
        "彼は「はい。」§と言った。§　次。",
        "यह सही है।§ अब आगे।",
        "هل هذا صحيح؟§ نعم.",
        "Это так.§ Далее.",
    ],
}


def by_character(text: str) -> list[SentenceSpan]:
    """The sentences of a text in which each character is a token."""
    return split_sentences(text, range(1, len(text) + 1))


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases])
def test_sentences_of_the_cases(case: str) -> None:
    assert [sentence.text for sentence in by_character(case.replace(CUT, ""))] == case.split(CUT)


def test_sentences_and_their_tokens() -> None:
    text = " We start. So 3.5 it is!\nDone"
    tokens = [" We", " start", ".", " So", " 3", ".", "5", " it", " is", "!", "\n", "Done"]
    ends = [sum(map(len, tokens[: i + 1])) for i in range(len(tokens))]
    assert split_sentences(text, ends) == [
        SentenceSpan(" We start.", 0, 3),
        SentenceSpan(" So 3.5 it is!\n", 3, 11),
        SentenceSpan("Done", 11, 12),
    ]


def test_a_token_across_a_boundary_belongs_to_the_sentence_it_ends_in() -> None:
    assert split_sentences("One. Two.", [3, 6, 9]) == [SentenceSpan("One.", 0, 1), SentenceSpan(" Two.", 1, 3)]
    assert split_sentences("One.\n\nTwo.", [3, 6, 10]) == [SentenceSpan("One.\n\n", 0, 2), SentenceSpan("Two.", 2, 3)]


def test_a_sentence_within_one_token_is_left_out() -> None:
    assert split_sentences("One. A. Two.", [3, 9, 12])[1:] == [SentenceSpan(" A. Two.", 1, 3)]
    assert split_sentences("One. Oh! Two.", [3, 10, 13]) == [SentenceSpan("One.", 0, 1), SentenceSpan(" Two.", 1, 3)]


def test_white_space_is_no_sentence() -> None:
    assert split_sentences("\n\n", [1, 2]) == []
    assert split_sentences("", []) == []
    assert split_sentences("\n\nOne.\n \n ", range(1, 11)) == [SentenceSpan("One.\n \n ", 2, 10)]


def test_a_part_of_a_text_is_split_as_if_alone() -> None:
    text = "<t>1. One. Two.</t> Three."
    assert split_sentences(text, range(1, len(text) + 1), 3, 15) == [
        SentenceSpan("1. One.", 3, 10),
        SentenceSpan(" Two.", 10, 15),
    ]
    # "<t>1" ends within, ".</t>" does not.
    assert split_sentences(text, [4, 10, 14, 19, 26], 3, 15) == [
        SentenceSpan("1. One.", 0, 2),
        SentenceSpan(" Two.", 2, 3),
    ]
    assert split_sentences(text, [4, 10, 14, 19, 26], 3, 3) == []


# Pairs of these touch what the rules look at; the rest is any Unicode but halves of surrogate pairs.
PIECES = [
    *["e.g", "Mr", "No", "Fig", "U.S", "p.m", "A", "x", "3", "Step 1", "word", "Word", "的", "é", "🎉", "e\u0301"],
    *["! ", ". ", "? ", "... ", "… ", "。", "！", ".", ",", ":", ' "', '" ', "(", ") ", "**", "`", "```\n", "|", "| "],
    *["$", "$$", "\\(", "\\)", "\\[", "\\]", "\\begin{a}", "\\end{a}", "\\text{", "}", "\\", "\n", "\n\n", "\r\n"],
    *["\u2028", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "  ", "\t", "- ", "1. "],
]
SCALARS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
MIXED = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
TEXTS = SCALARS | MIXED | st.tuples(SCALARS, SCALARS).map(". ".join)


@given(TEXTS)
def test_sentences_leave_no_gaps(text: str) -> None:
    sentences = by_character(text)
    assert all(text[s.begin : s.end] == s.text and s.text.strip() for s in sentences)
    assert all(a.end == b.begin for a, b in pairwise(sentences))
    assert not text[: sentences[0].begin if sentences else None].strip()
    assert not sentences or sentences[-1].end == len(text)
    assert all(any(map(str.isalnum, s.text)) for s in sentences[1:])


def learnt_tokenizer(trims: bool) -> PreTrainedTokenizerFast:
    """A byte-level one with tokens across full stops, line ends and parts of characters: its merges know no words.

    With `trims` the offsets are, as Llama 3's, without the white space around a token.
    """
    text = "".join(case.replace(CUT, "") for cases in CASES.values() for case in cases) + "".join(PIECES)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text[i : i + 60] for i in range(0, len(text), 30)] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    made = {
        "bytes": tiny_tokenizer,
        "learnt": lambda: learnt_tokenizer(trims=False),
        "learnt, trimming": lambda: learnt_tokenizer(trims=True),
        "byte-level": lambda: byte_level_tokenizer(200),
        "metaspace": metaspace_tokenizer,
        "metaspace with a space before": lambda: metaspace_tokenizer(prepend=True),
        "embedded": lambda: AutoTokenizer.from_pretrained(paths.embedded_dir() / "thinking"),
    }
    if name in made:
        return made[name]()
    folder = DATA / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
    return AutoTokenizer.from_pretrained(folder)


NAMES = ["bytes", "learnt", "learnt, trimming", "byte-level", "metaspace", "metaspace with a space before", "embedded"]
REAL = ["r1-distill-qwen", "qwen2.5-coder"]
# White space around what they decode is not the text's: one adds some, one's offsets leave it out.
LOOSE = {"learnt, trimming", "metaspace with a space before"}


def check_alignment(text: str, name: str) -> None:
    """Check that the tokens of each sentence decode to its text."""
    if name in REAL:
        text = unicodedata.normalize("NFC", text)  # as Qwen's decode whatever they read
    if name.startswith("metaspace"):
        text = text.replace("\u2581", " ")  # their own mark for a space
    read = tokenizer(name)(text, add_special_tokens=False, return_offsets_mapping=True)
    begins, ends = zip(*read.offset_mapping, strict=True) if read.input_ids else ((), ())
    sentences, stretches = split_sentences(text, ends), by_character(text)
    assert all(s.begin < s.end for s in sentences)
    assert all(a.end <= b.begin for a, b in pairwise(sentences))
    covered = {token for s in sentences for token in range(s.begin, s.end)}
    assert all(token in covered or not text[begins[token] : ends[token]].strip() for token in range(len(ends)))
    for s in sentences:
        [stretch] = {stretches[bisect_left(stretches, end, key=attrgetter("end"))] for end in ends[s.begin : s.end]}
        assert stretch.text == s.text
        across = begins[s.begin] < stretch.begin or any(begin < stretch.end for begin in begins[s.end : s.end + 1])
        if not across:
            decoded = tokenizer(name).decode(read.input_ids[s.begin : s.end])
            assert decoded.strip() == s.text.strip() if name in LOOSE else decoded == s.text


@pytest.mark.parametrize("name", [*NAMES, *REAL])
@settings(deadline=None)
@given(text=TEXTS)
def test_tokens_of_random_texts_match_their_sentences(name: str, text: str) -> None:
    check_alignment(text, name)


@pytest.mark.parametrize("name", [*NAMES, *REAL])
def test_tokens_of_the_cases_match_their_sentences(name: str) -> None:
    for cases in CASES.values():
        check_alignment(" ".join(cases).replace(CUT, ""), name)


@pytest.mark.parametrize("name", REAL)
def test_sentences_of_real_traces_have_usual_lengths(name: str) -> None:
    files = sorted((DATA / "traces").glob("*.jsonl"))
    if not files:
        pytest.skip("needs ../shared/data (or LM_EVAL_HYBRID_TEST_DATA)")
    lengths = []
    for file in files:
        for line in islice(file.open(encoding="utf-8"), 0, None, 20):
            text = json.loads(line)["response"]
            check_alignment(text, name)
            lengths += [len(sentence.text.split()) for sentence in by_character(text)]
    lengths.sort()
    assert len(lengths) > 1000
    assert 6 <= lengths[len(lengths) // 2] <= 14
    assert lengths[len(lengths) * 99 // 100] <= 50


def former(text: str, token_ends: Sequence[int]) -> list[SentenceSpan]:
    """The rule by which the embedded bundle's sentences were found."""
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"')\]]*(?=\s)|\n+", text)] + [len(text)]
    owners = [bisect_left(ends, end) for end in token_ends]
    sentences = []
    for owner, tokens in groupby(range(len(owners)), key=owners.__getitem__):
        span = list(tokens)
        words = text[ends[owner - 1] if owner else 0 : ends[owner]]
        if words.strip():
            sentences.append(SentenceSpan(words, span[0], span[-1] + 1))
    return sentences


@pytest.mark.parametrize("write", [base_document, thinking_document])
def test_the_embedded_pairs_notebooks_are_split_as_for_its_bundle(write: Writer) -> None:
    count = 0
    for document in islice(documents(write, "sentences", 0), 300):
        text = "".join(piece for piece, _ in document.pieces)
        read = tokenizer("embedded")(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in read.offset_mapping]
        assert split_sentences(text, ends) == former(text, ends)
        count += len(document.pieces)
    assert count > 2000


LONG = ["word ", "no-stop", ".", "... ", ". ", "。", " ", "\n ", "$", "`", "```a\n", "\\[", "\\(a", "\\begin{a}", '."']


@pytest.mark.parametrize("piece", LONG)
def test_splitting_takes_linear_time(piece: str) -> None:
    text = (piece * 60_000)[:60_000]
    started = time.monotonic()
    by_character(text)
    assert time.monotonic() - started < 5  # it takes a second at most; minutes, were it the length squared
