"""A judge's grades of a taxonomy: the paper's three questions (arXiv 2510.07364, section 3.3), put to a chat model.

The judge sees some sentences of each category and gives it a title and a description. Then, in new prompts that show
all titles and descriptions and nothing else of the first step:

- `consistency`: which category does a held-out sentence belong to? The share of replies that name the category in which
  the sentence was found; precision, recall and F1 of each category come from the same replies.
- `completeness`: does any description fit the sentence? The share of yes, and the mean of how well, 0 to 10.
- `independence`: how much do two descriptions overlap, 0 to 10? The mean of 1 - overlap / 10 over all pairs.

The score is the geometric mean of completeness, independence and consistency above chance: (c - 1/n) / (1 - 1/n), at
least 0, for n categories, because the right one of few is easier to guess. None makes up for another, and a single
category scores 0.

Held-out sentences are drawn by category, equally many of each if there are enough, so a rare behavior counts like a
common one. A reply without a usable answer is counted in `unanswered` and as a miss: a wrong category, no fit of
confidence 0, an overlap of 10, or a category without title, which no later question offers.
"""

import dataclasses
import json
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import ceil
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Count, first_problem
from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.discovery.taxonomy.naming import (
    DESCRIPTION_CHARACTERS,
    SENTENCE_CHARACTERS,
    TITLE_CHARACTERS,
    clipped,
    last_answer,
    parse_title,
    render_question,
    title_prompt,
)
from lm_eval_hybrid.judging.load import Judge
from lm_eval_hybrid.judging.recipe import JudgeCost, JudgeRecipe, cost
from lm_eval_hybrid.results.statistics import Accuracy, accuracy

SCHEMA = 1
_YES = {True: True, False: False, "true": True, "false": False, "yes": True, "no": False}
log = logging.getLogger(__name__)
T = TypeVar("T")

Descriptions = Sequence[tuple[str, str]]  # titles and descriptions of categories, which prompts number from 1


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class GradingRecipe(JudgeRecipe):
    """The model that grades, and how much of the taxonomy it sees.

    Attributes:
        sentences: the most held-out sentences of each category that are graded.
        examples: the most sentences of each category that the judge names it after.
    """

    sentences: Count = 50
    examples: Annotated[int, Field(ge=1, le=1000)] = 20


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class TaxonomyGrades:
    """A judge's grades; see the module. Tuples have one element for each category, in the order of `categories`.

    Attributes:
        judge: identity of the judge.
        categories: their numbers, ascending.
        titles, descriptions: empty if the judge gave none.
        precision, recall, f1: in [0, 1]; 0 if undefined.
        consistency, completeness: shares with their 95% Wilson intervals.
        confidence: mean, 0 to 10, with which the best description fits.
        independence: in [0, 1]; 0 if there are not two descriptions.
        asked: number of questions.
        unanswered: number of questions without a usable reply.
    """

    judge: str
    categories: tuple[int, ...]
    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    consistency: Accuracy
    completeness: Accuracy
    confidence: float
    independence: float
    asked: int
    unanswered: int

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TaxonomyGrades":
        for name in ("titles", "descriptions", "precision", "recall", "f1"):
            if len(getattr(self, name)) != len(self.categories):
                raise ValueError(f"{name} must be one for each of {len(self.categories)} categories")
        return self

    @property
    def titled(self) -> dict[int, tuple[str, str]]:
        """Title and description of each category that the judge named."""
        rows = zip(self.categories, self.titles, self.descriptions, strict=True)
        return {category: (title, description) for category, title, description in rows if title}

    @property
    def score(self) -> float:
        """In [0, 1]: the geometric mean of consistency above chance, completeness and independence."""
        chance = 1 / len(self.categories)
        above = max(0.0, (self.consistency.value - chance) / (1 - chance)) if chance < 1 else 0.0
        return float((above * self.completeness.value * self.independence) ** (1 / 3))

    def to_json(self) -> str:
        """The grades and their score, indented; equal grades give equal text."""
        fields = {"schema": SCHEMA, "score": self.score} | dataclasses.asdict(self)
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "TaxonomyGrades":
        """The grades that `to_json` wrote. Raises HybridError for anything else."""
        try:
            fields = json.loads(text)
            schema = fields.pop("schema")
            fields.pop("score")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise HybridError("the grades are not the JSON that grading writes; grade again") from None
        if schema != SCHEMA:
            raise HybridError(f"the grades have schema {schema!r:.20}, not {SCHEMA}; grade again")
        try:
            return pydantic.TypeAdapter(cls).validate_python(fields)
        except pydantic.ValidationError as error:
            raise HybridError(f"grades: {first_problem(error)}; grade again") from None


def estimate(categories: int, recipe: GradingRecipe, characters: int = 120) -> JudgeCost:
    """The most that grading so many categories costs, with sentences of a mean length in characters."""
    sentence = "x" * min(characters, SENTENCE_CHARACTERS)
    words = ("x" * TITLE_CHARACTERS, "x" * DESCRIPTION_CHARACTERS)
    described = [words] * categories
    graded = categories * recipe.sentences
    pairs = categories * (categories - 1) // 2
    prompts = (
        (categories, title_prompt([sentence] * recipe.examples)),
        (graded, consistency_prompt(described, sentence)),
        (graded, completeness_prompt(described, sentence)),
        (pairs, independence_prompt(words, words)),
    )
    return cost(prompts, recipe)


def grade(
    judge: Judge,
    sentences: Sequence[str],
    categories: Tensor,
    held_out: Sequence[str],
    held_out_categories: Tensor,
    exemplars: Mapping[int, Sequence[str]],
    recipe: GradingRecipe,
    seed: int,
) -> TaxonomyGrades:
    """Have a judge grade a taxonomy, after logging the most that it costs.

    A category is named after its exemplars, up to half of the recipe's examples, and after random sentences: the title
    describes all of it, not its extremes.

    Args:
        categories: [sentences] int64, the category of each.
        held_out_categories: [held out] int64.
        exemplars: the most typical sentences of each category, the best first; see `naming.exemplars`.

    Raises:
        HybridError: nothing is held out, or the judge cannot be reached.
    """
    if not held_out:
        raise HybridError("no sentences are held out, which grading needs; hold out more traces")
    learned, kept = _members(sentences, categories), _members(held_out, held_out_categories)
    numbers = sorted(learned.keys() | kept.keys() | exemplars.keys())
    shown = {n: _examples(exemplars.get(n, ()), learned.get(n, ()), recipe.examples, f"{seed}:{n}") for n in numbers}
    if len(numbers) == 1:
        log.warning("there is only one category: the judge has nothing to tell it from, and it scores 0")
    length = sum(len(sentence.strip()) for sentence in held_out) // len(held_out)
    log.info("the judge %s: %s", judge.identity, estimate(len(numbers), recipe, length))
    session = _JudgeSession(judge)
    titles = _titles(session, shown)
    graded = [
        (sentence, n)
        for n in numbers
        if n in kept
        for sentence in random.Random(f"{seed}:{n}").sample(kept[n], min(recipe.sentences, len(kept[n])))
    ]
    grades = _grades(session, numbers, titles, graded)
    session.report()
    return grades


class _JudgeSession:
    """Puts questions to a judge, and counts them and the unusable replies."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.asked = 0
        self.unusable: list[str] = []

    def ask(self, prompts: Sequence[str], parse: Callable[[str], T | None]) -> list[T | None]:
        replies = self.judge.ask(prompts) if prompts else []
        answers = [parse(reply) for reply in replies]
        self.asked += len(prompts)
        self.unusable += [reply for reply, answer in zip(replies, answers, strict=True) if answer is None]
        return answers

    def report(self) -> None:
        if self.unusable:
            log.warning(
                "%d of the judge's %d replies contain no usable answer and count as misses, such as %r; if they are "
                "cut off, a higher judge.max_tokens helps",
                len(self.unusable),
                self.asked,
                one_line(self.unusable[0])[:80],
            )


def _titles(session: _JudgeSession, shown: Mapping[int, Sequence[str]]) -> dict[int, tuple[str, str]]:
    """Title and description of each category to which the judge gave them."""
    named = [number for number, examples in shown.items() if examples]
    for number in sorted(shown.keys() - set(named)):
        log.warning("category %d has no examples: it gets no title, and its held-out sentences are misses", number)
    replies = session.ask([title_prompt(shown[number]) for number in named], parse_title)
    return {number: reply for number, reply in zip(named, replies, strict=True) if reply is not None}


def _grades(
    session: _JudgeSession,
    numbers: Sequence[int],
    titles: Mapping[int, tuple[str, str]],
    graded: Sequence[tuple[str, int]],
) -> TaxonomyGrades:
    named, described = list(titles), list(titles.values())
    positions: list[int | None] = [None] * len(graded)
    fits: list[tuple[bool, float] | None] = [None] * len(graded)
    if described:
        prompts = [consistency_prompt(described, sentence) for sentence, _ in graded]
        positions = session.ask(prompts, lambda reply: parse_category(reply, len(described)))
        fits = session.ask([completeness_prompt(described, sentence) for sentence, _ in graded], parse_fit)
    pairs = [independence_prompt(one, other) for one, other in combinations(described, 2)]
    overlaps = session.ask(pairs, parse_overlap)
    replied = [None if position is None else named[position] for position in positions]
    truth = [number for _, number in graded]
    precision, recall, f1 = zip(*(_agreement(replied, truth, number) for number in numbers), strict=True)
    return TaxonomyGrades(
        judge=session.judge.identity,
        categories=tuple(numbers),
        titles=tuple(titles.get(number, ("", ""))[0] for number in numbers),
        descriptions=tuple(titles.get(number, ("", ""))[1] for number in numbers),
        precision=precision,
        recall=recall,
        f1=f1,
        consistency=accuracy([float(one == other) for one, other in zip(replied, truth, strict=True)]),
        completeness=accuracy([float(fit is not None and fit[0]) for fit in fits]),
        confidence=_mean([0.0 if fit is None else fit[1] for fit in fits]),
        independence=_mean([0.0 if value is None else 1 - value / 10 for value in overlaps]),
        asked=session.asked,
        unanswered=len(session.unusable),
    )


def _agreement(replied: Sequence[int | None], truth: Sequence[int], category: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of a category; 0 if no reply names it, or no sentence has it."""
    right = sum(one == other == category for one, other in zip(replied, truth, strict=True))
    of_replies, of_truth = replied.count(category), truth.count(category)
    return right / max(1, of_replies), right / max(1, of_truth), 2 * right / max(1, of_replies + of_truth)


def _members(sentences: Sequence[str], categories: Tensor) -> dict[int, list[str]]:
    members: dict[int, list[str]] = {}
    for sentence, category in zip(sentences, categories.tolist(), strict=True):
        members.setdefault(category, []).append(sentence)
    return members


def _examples(exemplars: Sequence[str], members: Sequence[str], count: int, seed: str) -> list[str]:
    """Up to `count` different sentences: exemplars, up to half; then any members; then more exemplars."""
    best = list(dict.fromkeys(text for sentence in exemplars if (text := sentence.strip())))
    others = sorted({text for sentence in members if (text := sentence.strip())})
    half = best[: ceil(count / 2)]
    return list(dict.fromkeys([*half, *random.Random(seed).sample(others, len(others)), *best]))[:count]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def consistency_prompt(described: Descriptions, sentence: str) -> str:
    """Asks which of the categories a sentence belongs to."""
    return render_question("consistency", categories=_numbered(described), sentence=clipped(sentence))


def completeness_prompt(described: Descriptions, sentence: str) -> str:
    """Asks whether any of the categories describes a sentence, and how well."""
    return render_question("completeness", categories=_numbered(described), sentence=clipped(sentence))


def independence_prompt(one: tuple[str, str], other: tuple[str, str]) -> str:
    """Asks how much the descriptions of two categories overlap."""
    return render_question("independence", categories=_numbered((one, other)))


def _numbered(described: Descriptions) -> list[dict[str, Any]]:
    # No key of these is a key of an answer: else a reply that repeats its prompt would pass for one.
    return [
        {"number": number, "title": title, "description": description}
        for number, (title, description) in enumerate(described, 1)
    ]


def parse_category(reply: str, count: int) -> int | None:
    """The position, from 0, of the category that a reply names by its number from 1; None if it names none."""
    number = last_answer(reply, "category").get("category")
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,4}", number.strip()):
        number = int(number)
    return number - 1 if type(number) is int and 1 <= number <= count else None


def parse_fit(reply: str) -> tuple[bool, float] | None:
    """Whether a sentence fits any category, and how well, from 0 to 10; None if a reply does not say both."""
    answer = last_answer(reply, "fits")
    fit, confidence = answer.get("fits"), _grade(answer.get("confidence"))
    fit = fit.strip().lower() if isinstance(fit, str) else fit
    if confidence is None or not isinstance(fit, (bool, str)) or fit not in _YES:
        return None
    return _YES[fit], confidence


def parse_overlap(reply: str) -> float | None:
    """From 0 to 10; None if a reply does not say."""
    return _grade(last_answer(reply, "overlap").get("overlap"))


def _grade(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,4})?", value.strip()):
        value = float(value)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric and 0 <= value <= 10 else None  # False for NaN
