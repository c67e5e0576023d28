"""The naive bridge by hand, and the naive loop over pairs of models whose tokenizers differ."""

import json
import math

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.oracle.crossing import (
    ALPHABET,
    NaiveBridge,
    OneVocabulary,
    bridge_of,
    byte_level_bytes,
    bytes_of_tokens,
    sentencepiece_bytes,
)
from tests.oracle.models import random_steering, tiny_tokenizer
from tests.oracle.naive import NaivePolicy, draw, naive_generate, naive_score, read
from tests.oracle.scoring import NaiveSampling, filtered, take
from tests.oracle.tokenizers import CrossedPair, byte_level_tokenizer, crossed_pair, metaspace_tokenizer, with_rows
from tests.tolerances import approx

PADDING = 5


@pytest.fixture(scope="module")
def pair() -> CrossedPair:
    """Two kinds of tokenizers, and padded ids that would win often if they could be chosen."""
    pair = crossed_pair(byte_level_tokenizer(100), metaspace_tokenizer(), padding=PADDING)
    with torch.no_grad():
        for model in (pair.base, pair.thinking):
            model.get_output_embeddings().weight[-PADDING:] *= 2
    return pair


def named(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[str, list[str] | None]:
    """The crossing of each token of `source`, by name."""
    bridge = NaiveBridge(source, target)
    crossed = {string: bridge.to_thinking(token) for string, token in source.get_vocab().items()}
    return {string: ids and target.convert_ids_to_tokens(ids) for string, ids in crossed.items()}


def changed_ids(tokenizer: PreTrainedTokenizerFast, order: list[int]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose token of id i has id order[i]."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = {string: order[token] for string, token in state["model"]["vocab"].items()}
    for added in state["added_tokens"]:
        added["id"] = order[added["id"]]
    state["added_tokens"].sort(key=lambda added: added["id"])
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


# Bytes


def test_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    assert set(ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for point in [*range(0x800), *range(0x800, 0x110000, 997)]:
        if not 0xD800 <= point < 0xE000:
            ((word, _),) = split.pre_tokenize_str(chr(point))
            assert byte_level_bytes(word) == chr(point).encode()
    assert byte_level_bytes("Ġ\u2581") == "Ġ\u2581".encode()  # not of the alphabet: its own text


def test_bytes_of_tokens_by_hand() -> None:
    assert sentencepiece_bytes("▁the▁▁") == b" the  "
    assert [sentencepiece_bytes(string) for string in ("<0x0A>", "<0xff>", "<0x0A>x")] == [b"\n", b"\xff", b"<0x0A>x"]
    byte_level, metaspace, plain = byte_level_tokenizer(60), metaspace_tokenizer(), tiny_tokenizer()
    spelled = bytes_of_tokens(byte_level)
    assert [spelled[token] for token in range(2, 258)] == [bytes([byte]) for byte in range(256)]
    assert not {byte_level.eos_token_id, byte_level.pad_token_id} & set(spelled)
    assert spelled[byte_level.get_vocab()["Ġthe"]] == b" the"
    spelled = bytes_of_tokens(metaspace)
    assert [spelled[token] for token in range(4, 260)] == [bytes([byte]) for byte in range(256)]
    assert spelled[metaspace.get_vocab()["é"]] == "é".encode()
    assert bytes_of_tokens(plain)[plain.get_vocab()[".\n"]] == b".\n"
    byte_level.add_tokens(["Ġ<think>", AddedToken("<|user|>", special=True)])  # added tokens are their own text
    assert bytes_of_tokens(byte_level)[318] == "Ġ<think>".encode()
    assert 319 not in bytes_of_tokens(byte_level)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(150), metaspace_tokenizer()])
def test_bytes_of_a_text_are_those_of_its_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Let x be √ 2.\n  The café has 日本 <0x0A> left"
    ids = tokenizer.encode(text)
    spelled = bytes_of_tokens(tokenizer)
    assert b"".join(spelled[token] for token in ids) == text.encode()
    assert tokenizer.decode(ids) == text


# Crossing


def test_byte_level_to_sentencepiece() -> None:
    crossed = named(byte_level_tokenizer(200), metaspace_tokenizer())
    assert crossed["Ġthe"] == ["▁the"]  # the same bytes
    assert crossed["a"] == ["a"]  # <0x61> has a smaller id, but not the same string
    assert crossed["Ġ"] == ["▁"]  # no string is the same; <0x20> has a smaller id, but is what no text begins with
    assert crossed["Ċ"] == ["<0x0A>"]
    assert crossed["Ã"] == ["<0xC3>"]  # not a text by itself
    assert crossed["âĪ"] == ["<0xE2>", "<0x88>"]  # two of the three bytes of a root
    assert crossed["Ġanswer"] == ["▁an", "swer"]  # as the target writes it
    assert crossed["Hmm,"] == ["H", "m", "m", ","]
    assert crossed["afÃ"] == ["a", "f", "<0xC3>"]  # a beginning of café, cut within a character
    assert crossed["afÃ©"] == ["a", "f", "é"]
    assert all(crossed.values())


def test_sentencepiece_to_byte_level() -> None:
    crossed = named(metaspace_tokenizer(), byte_level_tokenizer(40))
    assert crossed["▁"] == crossed["<0x20>"] == ["Ġ"]
    assert crossed["<0x61>"] == crossed["a"] == ["a"]
    assert crossed["<0x0A>"] == ["Ċ"]
    assert crossed["<0xFF>"] == ["ÿ"]
    assert crossed["é"] == ["Ã", "©"]
    assert crossed["▁has"] == ["Ġ", "ha", "s"]
    assert {name for name, ids in crossed.items() if not ids} == {"<unk>", "<s>"}


def test_a_target_that_writes_a_space_before_each_text_takes_the_longest_tokens() -> None:
    crossed = named(byte_level_tokenizer(200), metaspace_tokenizer(prepend=True))
    assert crossed["her"] == ["her"]
    assert crossed["Ġthe"] == ["▁the"]
    assert crossed["les"] == ["l", "es"]  # encoded it would be " les"
    assert crossed["Ġso"] == ["▁s", "o"]  # and this one have two spaces


def test_what_a_plain_vocabulary_cannot_write_does_not_cross() -> None:
    crossed = named(byte_level_tokenizer(60), tiny_tokenizer())
    assert crossed["a"] == ["a"]
    assert crossed["Ġthe"] == [" ", "the"]
    assert crossed["A"] is crossed["Ã"] is crossed["The"] is None
    back = named(tiny_tokenizer(), byte_level_tokenizer(60))
    assert back["\n\n"] == ["Ċ", "Ċ"]
    assert back["the"] == ["t", "he"]
    assert back["<unk>"] is None  # its id is a byte there
    assert NaiveBridge(tiny_tokenizer(), byte_level_tokenizer(60)).to_thinking(72) is None  # not a token


def test_ends_and_pads_cross_whatever_they_are_called() -> None:
    crossed = named(byte_level_tokenizer(60), metaspace_tokenizer())
    assert crossed["<eos>"] == ["</s>"]
    assert crossed["<pad>"] == ["[PAD]"]  # not <unk>, which only happens to have its id
    back = named(metaspace_tokenizer(), byte_level_tokenizer(60))
    assert back["</s>"] == ["<eos>"]
    assert back["<s>"] is None
    assert back["[PAD]"] == ["<pad>"]  # no token of its name, a byte at its id


def test_special_tokens_cross_by_name_then_by_id() -> None:
    base, thinking = byte_level_tokenizer(40), byte_level_tokenizer(40)
    base.add_tokens([AddedToken(f"<|{name}|>", special=True) for name in ("object", "box", "user", "end", "only")])
    thinking.add_tokens([AddedToken("<|User|>", special=True), "<think>", AddedToken("<|end|>", special=True)])
    thinking.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<|last|>", special=True), "</think>"])
    crossed, back = named(base, thinking), named(thinking, base)
    assert crossed["<|object|>"] == ["<|User|>"] and back["<|User|>"] == ["<|object|>"]
    assert crossed["<|box|>"] == ["<think>"]  # an added token, though not a special one
    assert crossed["<|user|>"] == ["<|user|>"] and back["<|user|>"] == ["<|user|>"]
    assert crossed["<|end|>"] == ["<|end|>"] and back["<|end|>"] == ["<|end|>"]
    assert crossed["<|only|>"] == ["<|last|>"] and back["<|last|>"] == ["<|only|>"]
    assert back["<think>"] == base.convert_ids_to_tokens(base.encode("<think>"))  # not special: a text
    assert len(back["</think>"]) > 1
    assert crossed["<eos>"] == ["<eos>"]
    base.eos_token = "<|user|>"  # where the ends are others, they still cross to each other, before all else
    crossed, back = named(base, thinking), named(thinking, base)
    assert crossed["<|user|>"] == ["<eos>"] and back["<eos>"] == ["<|user|>"]
    assert crossed["<eos>"] == ["<eos>"] and back["<|user|>"] == ["<|user|>"]
    thinking.add_tokens([AddedToken("<|beyond|>", special=True)])
    assert named(thinking, base)["<|beyond|>"] is None


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("merges", [0, 40, 200])
def test_a_crossing_has_the_bytes_of_its_token(merges: int, prepend: bool) -> None:
    sides = byte_level_tokenizer(merges), metaspace_tokenizer(prepend)
    for source, target in (sides, sides[::-1], (sides[0], byte_level_tokenizer(100))):
        bridge, spelled, written = NaiveBridge(source, target), bytes_of_tokens(source), bytes_of_tokens(target)
        for token, expected in spelled.items():
            assert b"".join(written[part] for part in bridge.to_thinking(token)) == expected


def test_agreement_looks_at_the_first_of_a_crossing_either_way() -> None:
    base, thinking = byte_level_tokenizer(200), metaspace_tokenizer()
    bridge = NaiveBridge(base, thinking)
    names, others = base.get_vocab(), thinking.get_vocab()
    assert bridge.agree(names["Ġthe"], others["▁the"])
    assert not bridge.agree(names["Ġthe"], others["▁t"])
    assert bridge.agree(names["Ġanswer"], others["▁an"])  # the first part of it
    assert not bridge.agree(names["Ġanswer"], others["swer"])
    assert bridge.agree(names["Ġ"], others["▁"])  # crosses to <0x20>, but ▁ crosses back to it
    assert bridge.agree(names["a"], others["<0x61>"])
    assert bridge.agree(base.eos_token_id, thinking.eos_token_id)


def test_one_vocabulary_needs_no_bridge() -> None:
    assert type(bridge_of(None)) is type(bridge_of((tiny_tokenizer(), tiny_tokenizer()))) is OneVocabulary
    assert type(bridge_of((byte_level_tokenizer(9), byte_level_tokenizer(8)))) is NaiveBridge


def test_logits_of_ids_that_do_not_cross_are_shut_out() -> None:
    bridge = NaiveBridge(byte_level_tokenizer(0), tiny_tokenizer())
    logits = bridge.crossing_base(torch.arange(264.0))
    vocabulary = byte_level_tokenizer(0).get_vocab()
    kept = {vocabulary[character] for character in "abcdefghijklmnopqrstuvwxyz0123456789ĠĊ.?:"}
    assert {token for token in range(264) if logits[token] > -math.inf} == kept | {0, 1}
    assert bridge.crossing_thinking(torch.zeros(80)).tolist() == [0, 0, -math.inf, *[0] * 69, *[-math.inf] * 8]


# The loop


def prompts(pair: CrossedPair, text: str = "The answer is") -> tuple[list[int], list[int]]:
    return pair.base_tokenizer.encode(text), pair.thinking_tokenizer.encode(text)


def decoded(pair: CrossedPair, policy: NaivePolicy, length: int = 12, **kwargs: object) -> dict:
    tokenizers = pair.base_tokenizer, pair.thinking_tokenizer
    settings = {"decode": tokenizers[0].decode, **kwargs}
    steering = random_steering(pair)
    return naive_generate(pair.base, pair.thinking, tokenizers, steering, policy, *prompts(pair), length, **settings)


def scored(pair: CrossedPair, policy: NaivePolicy, continuation: list[int]) -> tuple[float, bool]:
    tokenizers = pair.base_tokenizer, pair.thinking_tokenizer
    steering = random_steering(pair)
    return naive_score(pair.base, pair.thinking, tokenizers, steering, policy, *prompts(pair), continuation)


def seen(pair: CrossedPair, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Logits of both models after emitted base tokens."""
    bridge = NaiveBridge(pair.base_tokenizer, pair.thinking_tokenizer)
    base, thinking = prompts(pair)
    crossed = [part for token in tokens for part in bridge.to_thinking(token)]
    return read(pair.base, base + tokens)[0], read(pair.thinking, thinking + crossed)[0]


def test_records_of_a_crossed_pair(pair: CrossedPair) -> None:
    policy = NaivePolicy(coefficients=(0.5, 1.0))
    result = decoded(pair, policy, 16)
    bridge = NaiveBridge(pair.base_tokenizer, pair.thinking_tokenizer)
    records, shut_out = result["records"], 0
    assert 0 < sum(record["steered"] for record in records) < len(records)
    for record in records:
        base, thinking = seen(pair, result["tokens"][: record["position"]])
        base_choice = int(base[: len(pair.base_tokenizer)].argmax())  # every token of these two crosses
        thinking_choice = int(thinking[: len(pair.thinking_tokenizer)].argmax())
        shut_out += int(base.argmax()) != base_choice or int(thinking.argmax()) != thinking_choice
        assert record["base_choice"] == base_choice
        assert record["thinking_choice"] == bridge.to_base(thinking_choice)[0]
        same = bridge.to_thinking(base_choice)[0] == thinking_choice or record["thinking_choice"] == base_choice
        assert record["steered"] != same
        logprob = float(thinking.log_softmax(-1)[bridge.to_thinking(record["token"])[0]])
        assert record["thinking_logprob"] == approx(logprob)
        assert record["changed"] == (record["token"] != record["base_choice"])
    assert shut_out  # padded ids were the likeliest somewhere
    assert result["text"] == pair.base_tokenizer.decode(result["tokens"])


@pytest.mark.parametrize("sampling", [None, NaiveSampling(1.5, top_k=30, top_p=0.95, seed=2)])
def test_takeover_emits_the_first_of_the_crossing(pair: CrossedPair, sampling: NaiveSampling | None) -> None:
    result = decoded(pair, NaivePolicy(emit="thinking"), 10, sampling=sampling)
    bridge = NaiveBridge(pair.base_tokenizer, pair.thinking_tokenizer)
    opened = [record for record in result["records"] if record["steered"]]
    assert opened
    for record in opened:
        expected = record["thinking_choice"]
        if sampling is not None:
            logits = seen(pair, result["tokens"][: record["position"]])[1]
            logits[len(pair.thinking_tokenizer) :] = -math.inf
            chance = draw(2, "sample", record["position"], prompts(pair)[0])
            expected = bridge.to_base(take(filtered(logits, sampling), chance))[0]
        assert record["token"] == expected


def test_one_model_alone_needs_no_bridge(pair: CrossedPair) -> None:
    for policy, model, ids in [
        (NaivePolicy(gate="never"), pair.base, prompts(pair)[0]),
        (NaivePolicy(gate="always", emit="thinking"), pair.thinking, prompts(pair)[1]),
    ]:
        settings = {"do_sample": False, "max_new_tokens": 6, "use_cache": False}
        row = torch.tensor([ids])
        expected = model.generate(row, attention_mask=torch.ones_like(row), eos_token_id=-1, **settings)[0, len(ids) :]
        result = decoded(pair, policy, 6, decode=str)
        assert result["tokens"] == expected.tolist()
        assert scored(pair, policy, expected.tolist())[1]
        eos = result["tokens"][3]
        assert (
            decoded(pair, policy, 6, decode=str, eos_id=eos)["tokens"]
            == result["tokens"][: expected.tolist().index(eos)]
        )


def test_score_of_a_crossed_pair(pair: CrossedPair) -> None:
    takeover = NaivePolicy(emit="thinking")
    result = decoded(pair, takeover, 6)
    assert scored(pair, takeover, result["tokens"])[1]
    forced = [*result["tokens"], 40, 41]
    bridge = NaiveBridge(pair.base_tokenizer, pair.thinking_tokenizer)
    expected = 0.0
    for position, token in enumerate(forced):
        base, thinking = seen(pair, forced[:position])
        y_base = int(base[: len(pair.base_tokenizer)].argmax())
        opened = not bridge.agree(y_base, int(thinking[: len(pair.thinking_tokenizer)].argmax()))
        logits, scored_id = (thinking, bridge.to_thinking(token)[0]) if opened else (base, token)
        expected += float(logits.double().log_softmax(-1)[scored_id])  # padded ids count in the sum
    total, is_greedy = scored(pair, takeover, forced)
    assert total == approx(expected, len(forced))
    assert not is_greedy


@pytest.mark.parametrize("sampling", [None, NaiveSampling(1.0, top_p=0.9)])
def test_other_ids_for_the_same_tokens_change_nothing(sampling: NaiveSampling | None) -> None:
    tokenizer = byte_level_tokenizer(60)
    pair = crossed_pair(tokenizer, tokenizer)
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(0))
    policy = NaivePolicy(coefficients=(0.5, 1.0))
    expected = decoded(pair, policy, sampling=sampling)
    expected_score = scored(pair, policy, expected["tokens"])
    rows = torch.stack([pair.thinking.get_input_embeddings().weight, pair.thinking.get_output_embeddings().weight])
    with_rows(pair.thinking, rows[:, order.argsort()])
    renamed = CrossedPair(pair.base, pair.thinking, tokenizer, changed_ids(tokenizer, order.tolist()))
    assert prompts(renamed)[1] == order[prompts(pair)[0]].tolist()
    result = decoded(renamed, policy, sampling=sampling)
    for record, other in zip(result["records"], expected["records"], strict=True):
        for field in ("thinking_logprob", "thinking_choice_logprob"):
            assert record.pop(field) == approx(other.pop(field))
    assert result == expected
    assert any(record["steered"] for record in result["records"])
    total, is_greedy = scored(renamed, policy, result["tokens"])
    assert total == approx(expected_score[0], len(result["tokens"]))
    assert is_greedy == expected_score[1]


def test_a_forced_token_that_cannot_cross_is_an_error() -> None:
    pair = crossed_pair(byte_level_tokenizer(0), tiny_tokenizer())
    unknown = pair.base_tokenizer.get_vocab()["Ã"]
    with pytest.raises(ValueError, match=f"base token {unknown} has no counterpart"):
        pairs = (pair.base_tokenizer, pair.thinking_tokenizer)
        naive_score(pair.base, pair.thinking, pairs, None, NaivePolicy(emit="thinking"), [70], [3], [unknown, 70])
