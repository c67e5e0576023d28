"""What a model of the pair can do: complete each behavior's sentence, and answer problems by itself."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid.embedded.corpus import prompt
from lm_eval_hybrid.embedded.notebooks import well_timed
from lm_eval_hybrid.embedded.problems import EmbeddedProblem

LONGEST = 400


@torch.no_grad()
def completion_rates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[EmbeddedProblem]
) -> dict[str, float]:
    """How often, per behavior, a model completes the sentence exactly, given its opening word in a well-timed notebook.

    A greedy completion is exact if and only if each token is the argmax after the right ones before it, so one
    forward pass over the whole notebook decides all of its sentences.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for problem in problems:
        ids = tokenizer(prompt(problem), add_special_tokens=False).input_ids
        spans = []
        for behavior, text in well_timed(problem):
            piece = tokenizer(text, add_special_tokens=False).input_ids
            spans.append((behavior, len(ids), len(ids) + len(piece)))
            ids = ids + piece
        tokens = torch.tensor([ids], device=model.device)
        hits = model(input_ids=tokens).logits[0, :-1].argmax(-1) == tokens[0, 1:]
        for behavior, begin, end in spans:
            asked[behavior] += 1
            right[behavior] += bool(hits[begin : end - 1].all())
    return {behavior: right[behavior] / count for behavior, count in asked.items()}


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[EmbeddedProblem],
    header: str = "Answer:",
) -> float:
    """Share of problems whose answer a model writes by itself, greedily, after `header`."""
    right = 0
    padding = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    for first in range(0, len(problems), 50):
        batch = problems[first : first + 50]
        inputs = tokenizer([prompt(problem, header) for problem in batch], **padding).to(model.device)
        inputs.pop("token_type_ids", None)
        answers = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for problem, text in zip(batch, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
            right += written_answer(text) == problem.answer
    return right / len(problems)


def written_answer(text: str) -> int | None:
    """The number after the last `####` or inside the last `\\boxed{}` of a notebook, or None."""
    found = re.findall(r"(?:#### |\\boxed\{)(\d+)", text)
    return int(found[-1]) if found else None
