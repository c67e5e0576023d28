from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lm_eval_hybrid.common.distributed import Ranks
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.decoder import HybridDecoder
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import SparseEncoder
from lm_eval_hybrid.discovery.activations import readers, store
from lm_eval_hybrid.discovery.activations.disagreements import NONE, Disagreements, fill, load
from lm_eval_hybrid.discovery.activations.readers import TOP
from lm_eval_hybrid.discovery.traces.pair import EncodedTrace, ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.collecting import SAE_LAYER, random_encoder
from tests.discovery.conftest import RAW, Studied
from tests.oracle.crossing import OneVocabulary, bridge_of
from tests.oracle.tokenizers import byte_level_tokenizer, crossed_pair, metaspace_tokenizer
from tests.tolerances import LOGITS, approx, assert_close

TEXTS = (
    "Let x be 3. She gives three apples. Wait, 12 = 3 - 15",
    "The answer is 15.\nThat is right, café 😀",
    "So",
    "",
    "First we find the other number. Since the total is 100, the other is 45. Hmm",
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several passes each."""
    monkeypatch.setattr(store, "SHARD_TRACES", 5)
    monkeypatch.setattr(readers, "LOGIT_BYTES", 4 * 400 * 150)


@dataclass(frozen=True)
class Naive:
    """One position at which the models differ, as a loop over positions finds it."""

    trace: int
    column: int
    target: int
    category: int
    top: dict[int, float]


def plain(backend: LocalBackend, ids: Sequence[int], layer: int) -> tuple[Tensor, Tensor]:
    """Logits [n, vocab], and the residual [n, d] after a layer, by transformers alone."""
    with torch.no_grad():
        out = backend.model._module(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0], out.hidden_states[layer + 1][0]


def naive_category(encoder: SparseEncoder, residual: Tensor) -> int:
    centred = residual - encoder.mean
    read = centred / centred.norm() - encoder.decoder_bias
    return int((encoder.weight @ read + encoder.bias).argmax())


def naive(pair: ModelPair, encoded: Sequence[EncodedTrace], bridge: OneVocabulary) -> tuple[list[Naive], list[int]]:
    """All disagreements, and how many positions of each trace were compared."""
    found, places = [], []
    for index, one in enumerate(encoded):
        said, residual = plain(pair.thinking, one.thinking_ids, SAE_LAYER)
        ours, _ = plain(pair.base, one.base_ids, 0)
        asked = range(one.begin - 1, len(one.thinking_ids) - 1)
        places.append(len(asked))
        for place in asked:
            theirs = bridge.crossing_thinking(said[place])
            choice = int(theirs.argmax())
            column = one.base_column(place)
            if bridge.agree(int(bridge.crossing_base(ours[column]).argmax()), choice):
                continue
            logprobs = theirs.log_softmax(-1)
            order = sorted(range(len(theirs)), key=lambda token: -float(logprobs[token]))[:TOP]
            top = {bridge.first_base(token): float(logprobs[token]) for token in order}
            category = naive_category(random_encoder(), residual[place])
            found.append(Naive(index, column, bridge.first_base(choice), category, top))
    return found, places


def check(found: Disagreements, wanted: list[Naive], places: list[int]) -> None:
    assert found.places.tolist() == places
    for name in ("trace", "column", "target", "category"):
        assert getattr(found, name).tolist() == [getattr(one, name) for one in wanted], name
        assert getattr(found, name).dtype == torch.int64
    for one, tokens, logprobs in zip(wanted, found.top.tolist(), found.top_logprob.tolist(), strict=True):
        # Several of the thinking model's tokens may begin with one of the base's.
        assert set(tokens) == set(one.top) and tokens[0] == one.target
        assert logprobs == sorted(logprobs, reverse=True)
        assert min(logprobs) == approx(min(one.top.values()))
        assert logprobs[0] == approx(max(one.top.values())) or len(one.top) < TOP
    assert found.rate == len(wanted) / sum(places)


def test_disagreements_equal_those_of_a_loop_over_positions(studied: Studied, tmp_path: Path) -> None:
    fill(tmp_path, studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1")
    wanted, places = naive(studied.pair, [studied.pair.encode(trace) for trace in studied.traces], OneVocabulary())
    found = load(tmp_path, len(studied.traces))
    check(found, wanted, places)
    assert 20 < len(wanted) < sum(places) and len(set(found.category.tolist())) > 2
    # What the thinking model wrote greedily is what it chooses at each place.
    encoded = [studied.pair.encode(trace) for trace in studied.traces]
    written = [encoded[t].base_ids[c + 1] for t, c in zip(found.trace.tolist(), found.column.tolist(), strict=True)]
    assert sum(a == b for a, b in zip(written, found.target.tolist(), strict=True)) >= len(written) - len(encoded)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize(
    "tokenizers",
    [
        (byte_level_tokenizer(100), metaspace_tokenizer()),
        (metaspace_tokenizer(), byte_level_tokenizer(100)),
        (byte_level_tokenizer(40), byte_level_tokenizer(200)),
    ],
)
def test_disagreements_across_vocabularies_equal_those_of_a_loop(
    tmp_path: Path, tokenizers: tuple, padding: int
) -> None:
    models = crossed_pair(*tokenizers, padding=padding)
    pair = ModelPair(
        *(LocalBackend(m, t) for m, t in zip((models.base, models.thinking), tokenizers, strict=True)), RAW
    )
    traces = [Trace(f"Question {i}: what?", text) for i, text in enumerate(TEXTS)]
    fill(tmp_path, pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    encoded = [pair.encode(trace) for trace in traces]
    wanted, places = naive(pair, encoded, bridge_of(tokenizers))
    check(load(tmp_path, len(traces)), wanted, places)
    assert len(wanted) > 20
    assert places == [len(one.thinking_ids) - one.begin for one in encoded] and places[3] == 1


def test_padding_rows_of_an_embedding_are_never_chosen(tmp_path: Path) -> None:
    tokenizers = (byte_level_tokenizer(100), metaspace_tokenizer())
    models = crossed_pair(*tokenizers, padding=7)
    with torch.no_grad():
        for model in (models.base, models.thinking):
            head = model.get_output_embeddings().weight
            head[-7:] = head[:-7].mean(0) + 50 * torch.randn(7, head.shape[1])  # mostly far above all others
    pair = ModelPair(
        *(LocalBackend(m, t) for m, t in zip((models.base, models.thinking), tokenizers, strict=True)), RAW
    )
    traces = [Trace("Question: what?", TEXTS[0])]
    [encoded] = [pair.encode(trace) for trace in traces]
    said, _ = plain(pair.thinking, encoded.thinking_ids, 0)
    assert (said.argmax(-1) >= len(tokenizers[1])).float().mean() > 0.5
    fill(tmp_path, pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, 1)
    check(found, *naive(pair, [encoded], bridge_of(tokenizers)))
    assert found.top.max() < len(tokenizers[0]) and found.top.min() > NONE


def test_logits_in_bounded_parts_make_no_difference(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [*studied.traces[:3], replace(studied.traces[3], text="One a. Two b. " * 30)]
    monkeypatch.setattr(readers, "LOGIT_BYTES", 2**28)
    fill(tmp_path / "at once", studied.pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    limit = 4 * 258 * 50  # fifty tokens at once
    monkeypatch.setattr(readers, "LOGIT_BYTES", limit)
    sizes: list[int] = []
    heads = [backend.model._module.lm_head for backend in (studied.base, studied.thinking)]
    handles = [head.register_forward_hook(lambda module, i, output: sizes.append(4 * output.numel())) for head in heads]
    try:
        fill(tmp_path / "parts", studied.pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    finally:
        for handle in handles:
            handle.remove()
    assert len(sizes) > 16 and max(sizes) <= limit
    one, other = load(tmp_path / "at once", 4), load(tmp_path / "parts", 4)
    for name in ("trace", "column", "target", "category", "places"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert_close(one.top_logprob, other.top_logprob, magnitude=LOGITS)


def test_models_that_agree_everywhere_leave_empty_tensors(studied: Studied, tmp_path: Path) -> None:
    same = replace(studied.pair, base=studied.thinking)
    fill(tmp_path, same, studied.traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, len(studied.traces))
    for name in ("trace", "column", "target", "category"):
        assert getattr(found, name).shape == (0,)
    assert found.top.shape == found.top_logprob.shape == (0, TOP)
    assert found.rate == 0 and found.places.sum() > 100
    assert found.of(torch.tensor([1, 3])).places.tolist() == found.places[[1, 3]].tolist()


@pytest.mark.parametrize("text", ["", " ", "a"])
def test_the_shortest_traces_are_compared(studied: Studied, tmp_path: Path, text: str) -> None:
    traces = [Trace(f"Q{i}", text) for i in range(7)]
    fill(tmp_path, studied.pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, 7)
    check(found, *naive(studied.pair, [studied.pair.encode(trace) for trace in traces], OneVocabulary()))
    assert found.places.tolist() == [len(text) + 1] * 7


def test_a_prompt_longer_than_the_context_is_not_compared(studied: Studied, tmp_path: Path) -> None:
    small = LocalBackend(studied.base.model._module, studied.base.tokenizer)
    small.context_length = 30
    pair = replace(studied.pair, base=small)
    traces = [Trace("x" * 40, "One a. Two b."), Trace("x" * 20, "One a. Two b."), Trace("x" * 30, "One a.")]
    fill(tmp_path, pair, traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, 3)
    # The last token that is read is after the last place.
    assert found.places.tolist() == [0, 10, 0]
    check(found, *naive(pair, [pair.encode(trace) for trace in traces], OneVocabulary()))


def test_disagreements_of_some_traces(studied: Studied, tmp_path: Path) -> None:
    fill(tmp_path, studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, len(studied.traces))
    some = found.of(torch.tensor([2, 5, 11]))
    kept = [i for i, trace in enumerate(found.trace.tolist()) if trace in (2, 5, 11)]
    for name in ("trace", "column", "target", "top", "top_logprob", "category"):
        assert torch.equal(getattr(some, name), getattr(found, name)[kept])
    assert some.rate == len(kept) / int(found.places[[2, 5, 11]].sum())
    assert found.of(torch.tensor([], dtype=torch.int64)).rate == 0


def test_processes_share_a_folder(studied: Studied, tmp_path: Path) -> None:
    fill(tmp_path / "one", studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1")
    fill(tmp_path / "two", studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1", Ranks(1, 2))
    with pytest.raises(HybridError, match="2 of 3 shards are missing"):
        load(tmp_path / "two", len(studied.traces))
    fill(tmp_path / "two", studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1", Ranks(0, 2))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for pair, traces, layer, told, said in (
        (studied.pair, studied.traces, SAE_LAYER, "other", "encoder"),
        (studied.pair, studied.traces, 0, "encoder-1", "layer"),
        (studied.pair, studied.traces[1:], SAE_LAYER, "encoder-1", "traces"),
        (replace(studied.pair, base=studied.thinking), studied.traces, SAE_LAYER, "encoder-1", "base"),
    ):
        with pytest.raises(HybridError, match=f"shards from different {said}"):
            fill(tmp_path / "one", pair, traces, random_encoder(), layer, told)


def test_decoding_opens_its_gate_at_disagreements(studied: Studied, tmp_path: Path) -> None:
    fill(tmp_path, studied.pair, studied.traces, random_encoder(), SAE_LAYER, "encoder-1")
    found = load(tmp_path, len(studied.traces))
    # What is emitted where the gate opens is the thinking model's own, so decoding stays on its trace.
    decoder = HybridDecoder(studied.base, studied.thinking, None, Policy((1.0,), (1,), emit="thinking"))
    for index, trace in enumerate(studied.traces[:4]):
        encoded = studied.pair.encode(trace)
        [answer] = decoder.generate([studied.pair.prompts(trace.prompt)], 40)
        assert answer.text == trace.text
        opened = [encoded.begin - 1 + i for i, record in enumerate(answer.records) if record.steered]
        mine = found.column[found.trace == index].tolist()
        assert [place for place in mine if place < encoded.begin - 1 + len(answer.records)] == opened
