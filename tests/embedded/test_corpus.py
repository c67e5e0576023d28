from itertools import islice

import pytest
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.embedded.corpus import (
    IGNORED,
    TrainingDocument,
    base_document,
    batches,
    documents,
    encode,
    thinking_document,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    sample = islice(documents(base_document, "test", 0), 300)
    return train_tokenizer(document.prompt + "".join(text for text, _ in document.pieces) for document in sample)


def test_only_learned_pieces_have_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = ((" We start.", "all"), (" Check it.", "but-first"), (" So.", "none"))
    ids, labels = encode(TrainingDocument("Question: x\nAnswer:", pieces), tokenizer)
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == " We start. it." + tokenizer.eos_token
    assert tokenizer.decode(ids) == "Question: x\nAnswer: We start. Check it. So." + tokenizer.eos_token
    assert len(ids) == len(labels)


def test_streams_repeat_for_a_seed_and_differ_by_purpose() -> None:
    first = list(islice(documents(thinking_document, "a", 0), 20))
    assert first == list(islice(documents(thinking_document, "a", 0), 20))
    assert first != list(islice(documents(thinking_document, "b", 0), 20))


def test_batches_hold_about_the_tokens_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    for ids, labels in islice(batches(base_document, tokenizer, "test", 0, tokens=2048, pool=64), 8):
        assert ids.shape == labels.shape
        assert ids.numel() <= 2048
        # Padding is never learned; the end token is, once a row.
        ends = (labels == tokenizer.eos_token_id).sum(1)
        assert (ends == 1).all()


def test_the_base_sees_three_kinds_of_documents() -> None:
    some = list(islice(documents(base_document, "kinds", 0), 400))
    notebooks = sum(document.prompt.endswith("Notebook:") for document in some)
    at_once = sum(len(document.pieces) == 1 and document.prompt.endswith("Answer:") for document in some)
    assert 240 < notebooks < 350 and 30 < at_once < 90


def test_the_tokenizer_reads_any_text_with_digits_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Janet\u2019s 16 ducks lay 3.5 eggs — ¿qué?\n\tΔ=12"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("123", add_special_tokens=False).input_ids) == ["1", "2", "3"]
