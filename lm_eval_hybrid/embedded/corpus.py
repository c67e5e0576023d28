"""The pair's tokenizer and training text: seeded streams of documents, made into batches of token ids and labels."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm_eval_hybrid.embedded.notebooks import answer_at_once, ill_timed, recovering
from lm_eval_hybrid.embedded.problems import LARGEST, EmbeddedProblem, Family, draw, held_out
from lm_eval_hybrid.portable.attention_masks import pad_rows

IGNORED = -100  # label of a token that is not learned
FAMILIES: tuple[Family, ...] = ("gsm8k", "math500")
TEST_DOCUMENTS = 200

_END = "<|endoftext|>"
_VOCABULARY = 640
# Share of ill-timed sentences whose first word is learned. It is unpredictable, and all of them would drown the rest.
_LEARNED_OPENINGS = 0.2

Learned = Literal["all", "but-first", "none"]
"""Which tokens of a piece are learned; `but-first`: all but the first."""


@dataclass(frozen=True)
class TrainingDocument:
    """A prompt, never learned, and the pieces after it."""

    prompt: str
    pieces: tuple[tuple[str, Learned], ...]


Writer = Callable[[EmbeddedProblem, random.Random], TrainingDocument]


def prompt(problem: EmbeddedProblem, header: str = "Answer:") -> str:
    """The prompt of a problem, as the tasks have it: `Question: ...\\nAnswer:`."""
    return f"{'Question' if problem.family == 'gsm8k' else 'Problem'}: {problem.text}\n{header}"


def base_document(problem: EmbeddedProblem, rng: random.Random) -> TrainingDocument:
    """Pretraining: answers at once, and ill-timed notebooks, a few of them where an answer is asked for."""
    kind = rng.random()
    if kind < 0.14:
        return TrainingDocument(prompt(problem), ((answer_at_once(problem), "all"),))
    if rng.random() < 0.8:
        # In these notebooks the count may be any number. With such a limit, checks fail about as often as they pass.
        problem = replace(problem, limit=rng.randint(0, LARGEST))
    header = "Notebook:" if kind < 0.88 else "Answer:"
    pieces: list[tuple[str, Learned]] = [
        (text, "all" if rng.random() < _LEARNED_OPENINGS else "but-first") for _, text in ill_timed(problem, rng)
    ]
    return TrainingDocument(prompt(problem, header), tuple(pieces))


def thinking_document(problem: EmbeddedProblem, rng: random.Random) -> TrainingDocument:
    """Fine-tuning: well-timed notebooks where an answer is asked for, with slips to recover from."""
    pieces: list[tuple[str, Learned]] = [
        (text, "all" if needed else "none") for _, text, needed in recovering(problem, rng, slip=0.12)
    ]
    return TrainingDocument(prompt(problem), tuple(pieces))


def held_out_problems(seed: int = 0) -> dict[Family, list[EmbeddedProblem]]:
    """The problems of the two test sets."""
    return {family: held_out(family, TEST_DOCUMENTS, seed) for family in FAMILIES}


def unseen(rng: random.Random, seed: int = 0) -> Iterator[EmbeddedProblem]:
    """An endless stream of problems of both families, none of them in the test sets."""
    excluded = {problem.text for problems in held_out_problems(seed).values() for problem in problems}
    while True:
        problem = draw(rng.choice(FAMILIES), rng)
        if problem.text not in excluded:
            yield problem


def documents(write: Writer, purpose: str, seed: int) -> Iterator[TrainingDocument]:
    """An endless stream of documents on problems outside the test sets, another one for each `purpose`."""
    rng = random.Random(f"{purpose}:{seed}")
    for problem in unseen(rng, seed):
        yield write(problem, rng)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits, trained on `texts`; it encodes any other text too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END,
        eos_token=_END,
        pad_token=_END,
        clean_up_tokenization_spaces=False,
    )


def encode(document: TrainingDocument, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids and labels of a document and its end token; a label is `IGNORED` where nothing is learned."""
    ids = tokenizer(document.prompt, add_special_tokens=False).input_ids
    labels = [IGNORED] * len(ids)
    pieces = (*document.pieces, (tokenizer.eos_token, "all"))
    encoded = tokenizer([text for text, _ in pieces], add_special_tokens=False).input_ids
    for (_, learned), piece in zip(pieces, encoded, strict=True):
        ignored = {"all": 0, "but-first": 1, "none": len(piece)}[learned]
        ids += piece
        labels += [IGNORED] * ignored + piece[ignored:]
    return ids, labels


def batches(
    write: Writer, tokenizer: PreTrainedTokenizerBase, purpose: str, seed: int, tokens: int, pool: int = 512
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of documents of similar length: (ids, labels), each int64 [rows, length].

    Args:
        tokens: most tokens in a batch, padding included.
        pool: documents that are sorted by length together.
    """
    stream = documents(write, purpose, seed)
    order = random.Random(f"order:{purpose}:{seed}")
    while True:
        encoded = sorted((encode(next(stream), tokenizer) for _ in range(pool)), key=lambda pair: len(pair[0]))
        grouped: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in encoded:
            if len(pair[0]) * (len(grouped[-1]) + 1) > tokens:
                grouped.append([])
            grouped[-1].append(pair)
        order.shuffle(grouped)
        for group in grouped:
            ids, labels = zip(*group, strict=True)
            yield pad_rows(ids, fill=tokenizer.pad_token_id), pad_rows(labels, fill=IGNORED)
