# ruff: noqa: RUF001  (how a real tokenizer writes its marks)
import json
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.request import prompt_ids
from lm_eval_hybrid.decoding.tokens.bridge import Bridge
from lm_eval_hybrid.decoding.tokens.vocabulary import Vocabulary
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair, fingerprint
from lm_eval_hybrid.discovery.traces.trace import Trace, digest
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import RAW, Studied, bos_tokenizer
from tests.oracle.crossing import NaiveBridge
from tests.oracle.tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tests.shared_data import DATA
from tests.tiny_system import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

TEXT = "Let x be 3. Wait, “is” it 😀 so?\nYes, the café has 45 = 12 + 33.\n\nHmm. Done"
CROSSED = {
    "bytes, then pieces": (tiny_tokenizer(), metaspace_tokenizer()),
    "pieces, then merges": (metaspace_tokenizer(), byte_level_tokenizer(200)),
    "merges, then pieces": (byte_level_tokenizer(100), metaspace_tokenizer()),
    "fewer merges, then more": (byte_level_tokenizer(40), byte_level_tokenizer(200)),
    "more merges, then fewer": (byte_level_tokenizer(200), byte_level_tokenizer(40)),
}
crossed = pytest.mark.parametrize("tokenizers", CROSSED.values(), ids=CROSSED.keys())


def backend(tokenizer: PreTrainedTokenizerBase, context: int = 4096) -> LocalBackend:
    """A backend whose model is never run."""
    return LocalBackend(tiny_model(0, context=context), tokenizer)


def pair_of(
    base: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase, prompt: PromptSpec = RAW, contexts: int = 4096
) -> ModelPair:
    return ModelPair(backend(base, contexts), backend(thinking, contexts), prompt)


def in_base(encoded: EncodedTrace, begin: int, end: int) -> list[int]:
    """The base's tokens for a span of the thinking model's."""
    return encoded.base_ids[encoded.base_column(begin - 1) + 1 : encoded.base_column(end - 1) + 1]


def written(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bytes:
    vocabulary = Vocabulary(tokenizer)
    return b"".join(vocabulary.content(name) for name in tokenizer.convert_ids_to_tokens(ids))


def test_models_with_one_vocabulary_read_the_same_ids(studied: Studied) -> None:
    tokenizer = studied.base.tokenizer
    for trace in studied.traces:
        encoded = studied.pair.encode(trace)
        prompt, text = tokenizer(trace.prompt).input_ids, tokenizer(trace.text).input_ids
        assert encoded.thinking_ids == encoded.base_ids == [*prompt, *text, tokenizer.eos_token_id]
        assert encoded.begin == len(prompt) and not encoded.truncated
        assert encoded.base_columns == list(range(len(prompt) - 1, len(encoded.base_ids)))
        said = [tokenizer.decode(encoded.thinking_ids[s.begin : s.end]) for s in encoded.sentences]
        assert said == [s.text for s in encoded.sentences]
        assert "".join("".join(said).split()) == "".join(trace.text.split())


@crossed
def test_the_base_reads_the_tokens_that_decoding_would_align(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    base, thinking = tokenizers
    encoded = pair_of(base, thinking).encode(Trace("Question: why?", TEXT))
    bridge = NaiveBridge(base, thinking)
    prompt = thinking("Question: why?").input_ids
    text = [*thinking(TEXT).input_ids, thinking.eos_token_id]
    assert encoded.thinking_ids == [*prompt, *text] and encoded.begin == len(prompt)
    parts = [base("Question: why?").input_ids, *(bridge.to_base(token) for token in text)]
    assert encoded.base_ids == [token for part in parts for token in part]
    assert encoded.base_columns == [count - 1 for count in accumulate(map(len, parts))]
    assert base.decode(encoded.base_ids) == f"Question: why?{TEXT}{base.eos_token}"


@crossed
def test_tokens_are_aligned_as_by_the_naive_bridge(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    naive, bridge = NaiveBridge(*tokenizers), Bridge(*tokenizers)
    for token in range(len(tokenizers[1])):
        assert bridge.back(token) == (naive.to_base(token) or ()), tokenizers[1].convert_ids_to_tokens(token)
    assert bridge.back(len(tokenizers[1]) + 5) == bridge.back(-1) == ()


@crossed
@settings(max_examples=20, deadline=None)
@given(text=st.text("ab Z.!?\n $\\é😀—3", max_size=60))
def test_sentences_do_not_overlap_and_the_base_reads_each_whole(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase], text: str
) -> None:
    base, thinking = tokenizers
    pair = PAIRS.setdefault(id(tokenizers), pair_of(base, thinking))
    encoded = pair.encode(Trace("Q", text))
    end = encoded.begin
    for sentence in encoded.sentences:
        assert end <= sentence.begin < sentence.end < len(encoded.thinking_ids)
        end = sentence.end
        theirs = encoded.thinking_ids[sentence.begin : sentence.end]
        ours = written(base, in_base(encoded, sentence.begin, sentence.end))
        assert ours == written(thinking, theirs)
    assert len(encoded.base_columns) == len(encoded.thinking_ids) - encoded.begin + 1


PAIRS: dict[int, ModelPair] = {}


@settings(max_examples=40, deadline=None)
@given(text=st.text("ab Z.!?\n $\\é😀—3", max_size=80))
def test_byte_tokens_of_a_sentence_spell_its_text(text: str) -> None:
    pair = PAIRS.setdefault(0, pair_of(tiny_tokenizer(), tiny_tokenizer()))
    encoded = pair.encode(Trace("Q", text))
    for sentence in encoded.sentences:
        assert written(pair.base.tokenizer, in_base(encoded, sentence.begin, sentence.end)).decode() == sentence.text


@pytest.fixture(scope="module")
def distilled() -> ModelPair:
    if not (DATA / "tokenizers").is_dir():
        pytest.skip(f"no tokenizers in {DATA}")
    names = ("qwen2.5-coder", "r1-distill-qwen")
    base, thinking = (AutoTokenizer.from_pretrained(DATA / "tokenizers" / name) for name in names)
    return pair_of(base, thinking, PromptSpec(thinking="chat", prefix="<think>\n"), contexts=1024)


def test_a_distilled_models_prompt_has_one_bos_and_one_opened_thought(distilled: ModelPair) -> None:
    tokenizer, ids = distilled.thinking.tokenizer, distilled.prompts("Why?")
    assert tokenizer.decode(ids.thinking_ids) == "<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜><think>\n"
    assert ids.thinking_ids.count(tokenizer.bos_token_id) == 1
    assert distilled.base.tokenizer.decode(ids.base_ids) == "Why?"


def test_real_traces_of_a_distilled_model(distilled: ModelPair) -> None:
    base, thinking = distilled.base.tokenizer, distilled.thinking.tokenizer
    (path,) = (DATA / "traces").glob("*1.5b_gsm8k.jsonl")
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(25), strict=False)]
    cut = 0
    for row in rows:
        trace = Trace(row["question"], row["response"])
        encoded = distilled.encode(trace)
        prompt, text = base(trace.prompt).input_ids, thinking(trace.text, add_special_tokens=False).input_ids
        room = min(1024 - len(prompt), 1024 - encoded.begin)
        # Every id is the base's own but the end's; `</think>` is what the base has in its place.
        assert encoded.base_ids == [*prompt, *text, base.eos_token_id][: len(prompt) + room]
        assert encoded.thinking_ids[encoded.begin :] == [*text, thinking.eos_token_id][:room]
        assert encoded.truncated == (len(text) + 1 > room)
        cut += encoded.truncated
        assert encoded.sentences
        thought = trace.text.split("</think>")[0]
        for sentence in encoded.sentences:
            ids = in_base(encoded, sentence.begin, sentence.end)
            assert ids == encoded.thinking_ids[sentence.begin : sentence.end]
            assert sentence.text in thought and sentence.text.strip() in base.decode(ids)
    assert 0 < cut < len(rows)


def test_a_prompt_is_raw_or_a_chat_turn_and_its_prefix_is_not_repeated() -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE)
    assert pair_of(tokenizer, tokenizer).thinking_text("Q") == "Q"
    chat = pair_of(tiny_tokenizer(), tokenizer, PromptSpec(thinking="chat", prefix="<think>\n"))
    assert chat.thinking_text("Q") == "<user>Q</user><assistant><think>\n"
    prompts = chat.prompts("Q")
    assert tokenizer.decode(prompts.thinking_ids) == "<user>Q</user><assistant><think>\n"
    assert tokenizer.decode(prompts.base_ids) == "Q"
    opened = tiny_tokenizer(CHAT_TEMPLATE.replace("<assistant>", "<assistant><think>\n"))
    again = pair_of(tiny_tokenizer(), opened, PromptSpec(thinking="chat", prefix="<think>\n"))
    assert again.thinking_text("Q") == "<user>Q</user><assistant><think>\n"


def test_a_thought_that_the_prompt_opened_ends_where_it_is_closed() -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE)
    pair = pair_of(tiny_tokenizer(), tokenizer, PromptSpec(thinking="chat", prefix="<think>\n"))
    encoded = pair.encode(Trace("Q", "We add. It is 3.</think> The answer is 3."))
    assert [s.text for s in encoded.sentences] == ["We add.", " It is 3."]
    assert [tokenizer.decode(in_base(encoded, s.begin, s.end)) for s in encoded.sentences] == ["We add.", " It is 3."]
    blank = pair.encode(Trace("Q", "\n</think> The answer is 3."))
    assert blank.sentences == () and not blank.truncated


def test_prompts_have_one_bos() -> None:
    plain = tiny_tokenizer()("Q").input_ids
    assert prompt_ids(bos_tokenizer(), "Q") == prompt_ids(bos_tokenizer(), "<pad>Q") == [0, *plain]
    assert prompt_ids(tiny_tokenizer(), "Q") == plain
    encoded = pair_of(bos_tokenizer(), bos_tokenizer()).encode(Trace("Q", "a"))
    assert encoded.base_ids == encoded.thinking_ids == [0, *plain, *tiny_tokenizer()("a").input_ids, 1]


@pytest.mark.parametrize("room", [0, 1, 4, 9, 10, 11, 12, 200])
@pytest.mark.parametrize("narrow", ["base", "thinking"])
def test_a_trace_is_cut_at_either_context(narrow: str, room: int) -> None:
    # Twelve bytes and an end, after a prompt of two; the second sentence ends with the twelfth byte.
    contexts = {"base": 4096, "thinking": 4096, narrow: 2 + room}
    pair = ModelPair(*(backend(tiny_tokenizer(), contexts[role]) for role in ("base", "thinking")), RAW)
    encoded = pair.encode(Trace("Q:", "One a. Two b"))
    whole = pair_of(tiny_tokenizer(), tiny_tokenizer()).encode(Trace("Q:", "One a. Two b"))
    kept = min(room, 13)
    assert encoded.thinking_ids == encoded.base_ids == whole.thinking_ids[: 2 + kept]
    assert encoded.base_columns == whole.base_columns[: 1 + kept]
    assert encoded.truncated == (room < 13)
    assert [s.text for s in encoded.sentences] == ["One a.", " Two b"][: 0 if room < 6 else 1 if room < 12 else 2]


def test_the_base_may_need_more_tokens_for_the_same_text() -> None:
    pair = ModelPair(backend(tiny_tokenizer(), 30), backend(metaspace_tokenizer(), 30), RAW)
    encoded = pair.encode(Trace("Q", TEXT))
    assert encoded.truncated and len(encoded.base_ids) <= 30 and len(encoded.thinking_ids) < 30
    assert (
        len(encoded.base_ids)
        + len(pair.bridge.back(metaspace_tokenizer()(TEXT).input_ids[len(encoded.base_columns) - 1]))
        > 30
    )
    assert encoded.base_columns[-1] == len(encoded.base_ids) - 1


@pytest.mark.parametrize("narrow", ["base", "thinking"])
def test_a_prompt_longer_than_a_context_is_cut_to_it(narrow: str) -> None:
    contexts = {"base": 4096, "thinking": 4096, narrow: 5}
    pair = ModelPair(*(backend(tiny_tokenizer(), contexts[role]) for role in ("base", "thinking")), RAW)
    encoded = pair.encode(Trace("A long prompt", "One a. Two b"))
    assert encoded.truncated and not encoded.sentences
    assert len(encoded.base_ids) <= contexts["base"] and len(encoded.thinking_ids) <= contexts["thinking"]
    assert encoded.begin == len(encoded.thinking_ids) and encoded.base_columns == [len(encoded.base_ids) - 1]


def test_a_prompt_without_tokens_is_refused(studied: Studied) -> None:
    with pytest.raises(HybridError, match="the prompt '' of a trace has no tokens; give it text"):
        studied.pair.encode(Trace("", "a"))


def test_unsuitable_tokenizers_are_refused_in_one_line() -> None:
    plain, endless = tiny_tokenizer(), tiny_tokenizer()
    endless.eos_token = None

    class Slow(type(plain)):
        is_fast = False

    slow = Slow(tokenizer_object=plain.backend_tokenizer, eos_token="<eos>")
    chat = PromptSpec(thinking="chat")
    letters = metaspace_tokenizer()
    for base, thinking, prompt, said in (
        (plain, plain, chat, "has no chat template"),
        (plain, slow, RAW, "Slow is no fast tokenizer, .*; convert it"),
        (plain, endless, RAW, "no end token"),
        (endless, plain, RAW, "no end token"),
        (plain, without_bytes(letters), RAW, "cannot be written in the thinking model's vocabulary"),
    ):
        with pytest.raises(HybridError, match=said) as caught:
            pair_of(base, thinking, prompt)
        assert "\n" not in str(caught.value)


def without_bytes(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer without byte fallback."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    kept = [name for name in vocabulary if not name.startswith("<0x")]
    state["model"] |= {"vocab": {name: i for i, name in enumerate(kept)}, "byte_fallback": False}
    for added in state["added_tokens"]:
        added["id"] = kept.index(added["content"])
    return type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>", eos_token="</s>", pad_token="[PAD]"
    )


def test_the_fingerprint_depends_on_weights_vocabulary_and_template(studied: Studied) -> None:
    model = tiny_model(0)
    told = fingerprint(LocalBackend(model, tiny_tokenizer()))
    assert told == fingerprint(LocalBackend(tiny_model(0), tiny_tokenizer())) == fingerprint(studied.base)
    others = {
        fingerprint(studied.thinking),
        fingerprint(LocalBackend(model, tiny_tokenizer(CHAT_TEMPLATE))),
        fingerprint(LocalBackend(model, byte_level_tokenizer(0))),
        fingerprint(LocalBackend(tiny_model(0).bfloat16(), tiny_tokenizer())),
    }
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    others.add(fingerprint(LocalBackend(model, tiny_tokenizer())))
    assert len(others | {told}) == 6
    assert json.loads(json.dumps(studied.pair.identity())) == studied.pair.identity()


def test_different_traces_have_different_digests() -> None:
    assert digest([Trace("a", "b")]) == digest([Trace("a", "b")])
    others = [[Trace("a", "c")], [Trace("ab", "")], [Trace("a", "b")] * 2, [], [Trace("b", "a")]]
    assert len({digest(traces) for traces in [*others, [Trace("a", "b")]]}) == 6
