"""Small tokenizers of two kinds and pairs of models over them: built in memory, the same each time.

Merges are learnt from a short text, the most frequent pair first and the smaller one among equals, so that
a tokenizer with more of them only adds to one with fewer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.oracle.crossing import ALPHABET, UNDERLINE, NaiveBridge
from tests.oracle.models import NOISE, SPREAD, related, tiny_model

TEXT = """Let x be the number of apples that Mary has. She gives three of them to her brother and has 12 left.
Then x - 3 = 12, so x = 12 + 3 = 15. Wait, let me check: 15 - 3 = 12. That is right.
The answer is 15. The area of a circle with radius r is π r², and 2 √ 9 = 6 since √ 9 = 3.
Question: what is the sum of the first ten numbers? Answer: the sum is 10 * 11 / 2 = 55, so the answer is 55.
First we find the other number. Since the total is 100, the other number is 100 - 55 = 45. Thus the café has 45.
Hmm, I should verify this step again. If each box holds 24 pencils, then 7 boxes hold 7 * 24 = 168 pencils in all.
Suppose that a train travels 60 miles per hour for 2.5 hours; its distance is 60 * 2.5 = 150 miles, not 120.
Therefore we divide both sides by 4 and get y = 8. However, we must also consider the negative root, y = -8."""


@dataclass(frozen=True)
class CrossedPair:
    """A base and a thinking model (float32, eval mode, CPU), each with a tokenizer of its own."""

    base: PreTrainedModel
    thinking: PreTrainedModel
    base_tokenizer: PreTrainedTokenizerFast
    thinking_tokenizer: PreTrainedTokenizerFast


def byte_level_tokenizer(merges: int) -> PreTrainedTokenizerFast:
    """GPT-2's kind: <pad>, <eos>, all bytes in order from id 2, and `merges` merged tokens from id 258.

    TEXT yields some 300 merges, and no more.
    """
    characters = {byte: character for character, byte in ALPHABET.items()}
    words = [[characters[byte] for byte in word.encode()] for word in re.findall(r" ?[^\s]+|\s", TEXT)]
    learnt = learnt_merges(words, merges)
    pieces = ["<pad>", "<eos>", *(characters[byte] for byte in range(256))]
    model = Tokenizer(BPE(vocab=numbered(pieces, learnt), merges=learnt))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def metaspace_tokenizer(prepend: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's kind: <unk>, <s>, </s>, [PAD], <0x00> to <0xFF> from id 4, characters, 80 merged tokens.

    With `prepend` each text gets a leading space, as Llama 2 has it; without, texts are as they are, as with
    Gemma. A newline is a byte, as are characters that are not in TEXT.
    """
    words = [list(word.replace(" ", UNDERLINE)) for word in re.findall(r" ?[^\s]+", TEXT)]
    learnt = learnt_merges(words, 80)
    characters = sorted({character for word in words for character in word})
    pieces = ["<unk>", "<s>", "</s>", "[PAD]", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    model = Tokenizer(BPE(vocab=numbered(pieces, learnt), merges=learnt, unk_token="<unk>", byte_fallback=True))
    spaces = normalizers.Replace(" ", UNDERLINE)
    model.normalizer = normalizers.Sequence([normalizers.Prepend(UNDERLINE), spaces]) if prepend else spaces
    steps = [decoders.Replace(UNDERLINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    model.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
    )


def numbered(pieces: Sequence[str], merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """A vocabulary of `pieces`, then of what the merges make."""
    return {piece: token for token, piece in enumerate([*pieces, *("".join(merge) for merge in merges)])}


def learnt_merges(words: Sequence[Sequence[str]], count: int) -> list[tuple[str, str]]:
    """The first `count` merges of byte pair encoding, each of which makes a new token."""
    words = [list(word) for word in words]
    learnt: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(learnt) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        fresh = [pair for pair in pairs if "".join(pair) not in made]
        if not fresh:
            raise ValueError(f"the text yields {len(learnt)} merges, not {count}")
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        made.add("".join(best))
        words = [merged(word, best) for word in words]
    return learnt


def merged(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """`word` with each occurrence of `pair` joined, from the left."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def crossed_pair(
    base_tokenizer: PreTrainedTokenizerFast,
    thinking_tokenizer: PreTrainedTokenizerFast,
    family: str = "llama",
    seed: int = 0,
    padding: int = 0,
) -> CrossedPair:
    """Related models that agree at times although their ids differ; logits have `padding` ids beyond the tokenizers.

    The thinking model is the base plus noise; its rows of embeddings and head are those of the base's token
    that each of its ids crosses to, plus noise. byte_level_tokenizer(100) and metaspace_tokenizer() agree at more
    than half of the positions; with 40 or 200 merges far more tokens cross as several, and agreement is rare.
    """
    noise = NOISE[family] / 2  # there are more tokens to confuse than in a tiny_pair
    bridge = NaiveBridge(base_tokenizer, thinking_tokenizer)
    generator = torch.Generator().manual_seed(seed)
    base = tiny_model(family, seed)
    thinking = related(base, seed + 1000, noise)

    def normal(vocabulary: int) -> Tensor:
        return torch.randn(2, vocabulary + padding, base.config.hidden_size, generator=generator)

    base_rows, thinking_rows = SPREAD * normal(len(base_tokenizer)), SPREAD * normal(len(thinking_tokenizer))
    for token in range(len(base_tokenizer)):
        if not base_tokenizer.decode([token]).replace("\ufffd", "\0").isprintable():
            base_rows[1, token] /= 2  # lone bytes would be most of the text otherwise
    for token in range(len(thinking_tokenizer)):
        crossed = bridge.to_base(token)
        if crossed:
            thinking_rows[:, token] *= noise / SPREAD
            thinking_rows[:, token] += base_rows[:, crossed[0]]
    with_rows(base, base_rows)
    with_rows(thinking, thinking_rows)
    return CrossedPair(base, thinking, base_tokenizer, thinking_tokenizer)


@torch.no_grad()
def with_rows(model: PreTrainedModel, rows: Tensor) -> None:
    """Give `model` embeddings and a head [2, vocab, d], in place."""
    model.resize_token_embeddings(rows.shape[1], mean_resizing=False)
    model.get_input_embeddings().weight.copy_(rows[0])
    model.get_output_embeddings().weight.copy_(rows[1])
