"""Training text of the pair: seeded streams of (prompt, pieces), each piece a text and whether a model learns it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_hybrid.embedded.notebooks import answer_at_once, ill_timed, recovering
from lm_eval_hybrid.embedded.problems import LARGEST, Family, Problem, draw, held_out

IGNORED = -100
# Share of first tokens that are learned where they tell nothing: were it all, their noise would drown the rest.
HEARD = 0.2
FAMILIES: tuple[Family, ...] = ("gsm8k", "math500")
TEST_DOCUMENTS = 200


Learned = Literal["all", "but-first", "none"]


@dataclass(frozen=True)
class Document:
    """A prompt, never learned, and the pieces after it: (text, how much of it is learned)."""

    prompt: str
    pieces: tuple[tuple[str, Learned], ...]


Writer = Callable[[Problem, random.Random], Document]


def prompt(problem: Problem, header: str = "Answer:") -> str:
    """The prompt of a problem, as the tasks put it: `Question: ...\\nAnswer:`."""
    return f"{'Question' if problem.family == 'gsm8k' else 'Problem'}: {problem.text}\n{header}"


def base_document(problem: Problem, rng: random.Random) -> Document:
    """Pretraining: answers at once, and ill-timed notebooks, a few of them where an answer is asked for."""
    kind = rng.random()
    if kind < 0.14:
        return Document(prompt(problem), ((answer_at_once(problem), "all"),))
    if rng.random() < 0.8:
        # Where the count is any number, so is the limit: checks then fail about as often as they pass.
        problem = replace(problem, limit=rng.randint(0, LARGEST))
    header = "Notebook:" if kind < 0.88 else "Answer:"
    pieces = ((text, "all" if rng.random() < HEARD else "but-first") for _, text in ill_timed(problem, rng))
    return Document(prompt(problem, header), tuple(pieces))


def thinking_document(problem: Problem, rng: random.Random) -> Document:
    """Fine-tuning: well-timed notebooks where an answer is asked for, with slips to recover from."""
    pieces = ((text, "all" if needed else "none") for _, text, needed in recovering(problem, rng, slip=0.12))
    return Document(prompt(problem), tuple(pieces))


def held_out_problems(seed: int = 0) -> dict[Family, list[Problem]]:
    """The held-out problems of each family: those of the two test sets."""
    return {family: held_out(family, TEST_DOCUMENTS, seed) for family in FAMILIES}


def unseen(rng: random.Random, seed: int = 0) -> Iterator[Problem]:
    """An endless stream of problems of both families, none of them in the test sets."""
    excluded = {problem.text for problems in held_out_problems(seed).values() for problem in problems}
    while True:
        problem = draw(rng.choice(FAMILIES), rng)
        if problem.text not in excluded:
            yield problem


def documents(write: Writer, purpose: str, seed: int) -> Iterator[Document]:
    """An endless stream of documents on problems outside the test sets; `purpose` makes it another stream."""
    rng = random.Random(f"{purpose}:{seed}")
    for problem in unseen(rng, seed):
        yield write(problem, rng)


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids and labels of a document, its end token included; labels are `IGNORED` where nothing is learned."""
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
    """Endless (ids, labels) int64 [rows, length], about `tokens` tokens each, of documents of like length."""
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
            length = max(len(ids) for ids, _ in group)
            ids = torch.tensor([i + [tokenizer.pad_token_id] * (length - len(i)) for i, _ in group])
            labels = torch.tensor([row + [IGNORED] * (length - len(row)) for _, row in group])
            yield ids, labels
