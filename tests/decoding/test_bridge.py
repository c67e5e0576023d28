import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from tests.shared_data import DATA


def tokenizer(words: list[str], eos: str, specials: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Ids are places in the list."""
    vocabulary = {word: index for index, word in enumerate(words)}
    model = Tokenizer(WordLevel(vocabulary, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=eos, additional_special_tokens=list(specials))


WORDS = [f"w{i}" for i in range(300)]


def test_one_vocabulary_passes_through() -> None:
    bridge = Bridge(tokenizer([*WORDS, "<eos>"], "<eos>"), tokenizer([*WORDS, "<eos>"], "<eos>"))
    ids = torch.arange(301).view(7, 43)
    assert torch.equal(bridge.to_thinking(ids), ids)
    assert torch.equal(bridge.to_base(ids), ids)


def test_tokens_are_matched_by_string_not_by_id() -> None:
    bridge = Bridge(tokenizer([*WORDS, "<eos>"], "<eos>"), tokenizer(["<eos>", *WORDS], "<eos>"))
    assert bridge.to_thinking(torch.tensor([0, 299, 300])).tolist() == [1, 300, 0]
    assert bridge.to_base(torch.tensor([0, 1, 300])).tolist() == [300, 0, 299]


def test_ends_pair_whatever_their_names_and_other_specials_pair_by_id() -> None:
    base = tokenizer([*WORDS, "<end>", "<box>", "<im>"], "<end>", ("<box>", "<im>"))
    thinking = tokenizer([*WORDS, "</think>", "<box>", "<stop>", "<im>"], "<stop>", ("</think>", "<box>", "<im>"))
    bridge = Bridge(base, thinking)
    # <end> is <stop>; <box> and <im> have their strings; nothing is left for </think>, whose id is <end>'s.
    assert bridge.to_thinking(torch.tensor([300, 301, 302])).tolist() == [302, 301, 303]
    assert bridge.to_base(torch.tensor([300, 301, 302, 303])).tolist() == [300, 301, 300, 302]
    by_id = Bridge(
        tokenizer([*WORDS, "<e>", "<box>"], "<e>", ("<box>",)), tokenizer([*WORDS, "<e>", "</t>"], "<e>", ("</t>",))
    )
    assert by_id.to_thinking(torch.tensor([301])).tolist() == [301]


def test_padding_rows_of_the_logits_are_never_chosen() -> None:
    bridge = Bridge(tokenizer([*WORDS, "<eos>"], "<eos>"), tokenizer([*WORDS, "<eos>"], "<eos>"))
    logits = torch.zeros(2, 3, 320)
    logits[..., 7], logits[..., 310] = 1.0, 2.0
    assert (bridge.base_logits(logits).argmax(-1) == 7).all()
    assert (bridge.thinking_logits(logits).argmax(-1) == 7).all()
    assert bridge.to_thinking(torch.tensor([310])).tolist() == [-1]


def test_a_token_that_the_other_lacks_is_never_chosen() -> None:
    bridge = Bridge(tokenizer([*WORDS, "only"], "w0"), tokenizer(WORDS, "w0"))
    logits = torch.zeros(301)
    logits[300], logits[5] = 2.0, 1.0
    assert bridge.base_logits(logits).argmax() == 5


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(HybridError, match="300 of the base model's 301 tokens cannot be written"):
        Bridge(tokenizer([*WORDS, "<eos>"], "<eos>"), tokenizer([*(f"v{i}" for i in range(300)), "<eos>"], "<eos>"))


@pytest.mark.skipif(not (DATA / "tokenizers").is_dir(), reason=f"no tokenizers in {DATA}")
def test_a_distilled_pair() -> None:
    base = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen2.5-coder")
    thinking = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "r1-distill-qwen")
    bridge = Bridge(base, thinking)
    text = "Wait, 3 ÷ 4 = 12 — let me check: \\boxed{12} ✓\n\n"
    ids = torch.tensor(base(text).input_ids)
    assert thinking.decode(bridge.to_thinking(ids)) == text
    assert torch.equal(bridge.to_base(bridge.to_thinking(ids)), ids)
    end = bridge.to_base(torch.tensor([thinking.eos_token_id]))
    assert end.item() == base.eos_token_id
    # `</think>` took over the id of a special token that the base knows by another name.
    closing = thinking.convert_tokens_to_ids("</think>")
    assert bridge.to_thinking(bridge.to_base(torch.tensor([closing]))).item() == closing
