"""A judge's grades of a taxonomy: the paper's three questions (arXiv 2510.07364, section 3.3), asked of a model.

The judge sees some sentences of each category and gives it a title and a description. Then, in fresh prompts that show
all titles and descriptions and nothing else of what came before:

- `consistency`: which category is a held-out sentence of? The share of replies that name the category which the
  sentence was found in; precision, recall and F1 of each category are of the same replies.
- `completeness`: does any description fit the sentence? The share that says yes, and the mean of how well, 0 to 10.
- `independence`: how much do two descriptions overlap, 0 to 10? The mean of 1 - overlap / 10 over all pairs.

The score is the geometric mean of completeness, independence and, above chance, consistency: with n categories that is
(c - 1/n) / (1 - 1/n), at least 0, for among fewer categories the right one is easier to guess. None makes up for
another, and a single category, which tells nothing apart, scores 0.

Held-out sentences are drawn by category, as many of each where there are enough: a rare behavior counts like a common
one. A reply that says nothing usable is counted in `unanswered` and as a miss: a wrong category, no fit of confidence
0, an overlap of 10, a category without title, which no later question offers.
"""

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import ceil
from typing import Annotated, TypeVar

import pydantic
from pydantic import Field
from torch import Tensor

from lm_eval_hybrid.bundles.manifest import Count, first_problem
from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.discovery.taxonomy import questions
from lm_eval_hybrid.judging.load import Judge
from lm_eval_hybrid.judging.recipe import JudgeCost, JudgeRecipe, cost
from lm_eval_hybrid.results.statistics import Accuracy, accuracy

SCHEMA = 1
log = logging.getLogger(__name__)
T = TypeVar("T")


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class TaxonomyJudge(JudgeRecipe):
    """Which model grades, as any judge is asked, and how much of the taxonomy.

    Attributes:
        sentences: held-out sentences of each category that are graded, at most.
        examples: sentences of each category that the judge names it after, at most.
    """

    sentences: Count = 50
    examples: Annotated[int, Field(ge=1, le=1000)] = 20


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class Grades:
    """What a judge found; see the module. Tuples have an element for each category, in the order of `categories`.

    Attributes:
        judge: its identity.
        categories: their numbers, ascending.
        titles, descriptions: empty where the judge gave none.
        precision, recall, f1: in [0, 1]; 0 where they are not defined.
        consistency, completeness: shares with their 95% Wilson intervals.
        confidence: mean, 0 to 10, with which the best description fits.
        independence: in [0, 1]; 0 where there are no two descriptions.
        asked: questions.
        unanswered: questions without a usable reply.
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
    def _check(self) -> "Grades":
        for name in ("titles", "descriptions", "precision", "recall", "f1"):
            if len(getattr(self, name)) != len(self.categories):
                raise ValueError(f"{name} must be one for each of {len(self.categories)} categories")
        return self

    @property
    def score(self) -> float:
        """In [0, 1]: the geometric mean of consistency above chance, completeness and independence."""
        chance = 1 / len(self.categories)
        above = max(0.0, (self.consistency.value - chance) / (1 - chance)) if chance < 1 else 0.0
        return (above * self.completeness.value * self.independence) ** (1 / 3)

    def to_json(self) -> str:
        """The grades and their score, indented; equal grades give equal text."""
        fields = {"schema": SCHEMA, "score": self.score} | dataclasses.asdict(self)
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Grades":
        """The grades that `to_json` wrote.

        Raises:
            HybridError: for anything else.
        """
        try:
            fields = json.loads(text)
            schema = fields.pop("schema")
            fields.pop("score")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise HybridError("grades must be the JSON that grading wrote; found something else; grade again") from None
        if schema != SCHEMA:
            raise HybridError(f"grades must be of schema {SCHEMA}; found {schema!r:.20}; grade again")
        try:
            return pydantic.TypeAdapter(cls).validate_python(fields)
        except pydantic.ValidationError as error:
            raise HybridError(f"grades: {first_problem(error)}; grade again") from None


def estimate(categories: int, recipe: TaxonomyJudge, characters: int = 120) -> JudgeCost:
    """What grading takes at most, before anything is asked or even found.

    Args:
        categories: how many there are.
        characters: mean length of a sentence.
    """
    sentence = "x" * min(characters, questions.SENTENCE)
    words = ("x" * questions.TITLE, "x" * questions.DESCRIPTION)
    described = [words] * categories
    graded = categories * recipe.sentences
    pairs = categories * (categories - 1) // 2
    prompts = (
        (categories, questions.title([sentence] * recipe.examples)),
        (graded, questions.consistency(described, sentence)),
        (graded, questions.completeness(described, sentence)),
        (pairs, questions.independence(words, words)),
    )
    return cost(prompts, recipe)


def grade(
    judge: Judge,
    sentences: Sequence[str],
    categories: Tensor,
    held_out: Sequence[str],
    held_out_categories: Tensor,
    exemplars: Mapping[int, Sequence[str]],
    recipe: TaxonomyJudge,
    seed: int,
) -> Grades:
    """The judge's grades of a taxonomy. What they cost at most is logged first.

    A category is named after its exemplars, up to half of the recipe's examples, and others of its sentences, drawn at
    random: so that the title is of all of it, not of its extremes.

    Args:
        categories: [sentences] int64, the category that each was found in.
        held_out_categories: [held out] int64.
        exemplars: of each category, the most typical sentences, the best first; see `naming.exemplars`.

    Raises:
        HybridError: where nothing is held out, or the judge cannot be asked.
    """
    if not held_out:
        raise HybridError("grading needs held-out sentences; found none; hold out more traces")
    learned, kept = _members(sentences, categories), _members(held_out, held_out_categories)
    numbers = sorted(learned.keys() | kept.keys() | exemplars.keys())
    shown = {n: _shown(exemplars.get(n, ()), learned.get(n, ()), recipe.examples, f"{seed}:{n}") for n in numbers}
    if len(numbers) == 1:
        log.warning("there is one category alone: the judge has nothing to tell it from, and it scores 0")
    length = sum(len(sentence.strip()) for sentence in held_out) // len(held_out)
    log.info("the judge %s: %s", judge.identity, estimate(len(numbers), recipe, length))
    asking = _Asking(judge)
    titles = _titles(asking, shown)
    graded = [
        (sentence, n) for n in numbers if n in kept for sentence in _drawn(kept[n], recipe.sentences, f"{seed}:{n}")
    ]
    found = _graded(asking, numbers, titles, graded)
    asking.report()
    return found


class _Asking:
    """Questions to a judge; how many there were, and how many had no usable reply."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.asked = 0
        self.useless: list[str] = []

    def ask(self, prompts: Sequence[str], read: Callable[[str], T | None]) -> list[T | None]:
        replies = self.judge.ask(prompts) if prompts else []
        found = [read(reply) for reply in replies]
        self.asked += len(prompts)
        self.useless += [reply for reply, value in zip(replies, found, strict=True) if value is None]
        return found

    def report(self) -> None:
        if self.useless:
            log.warning(
                "%d of the judge's %d replies say nothing usable and count as misses, such as %r; a higher "
                "judge.max_tokens helps where they are cut off",
                len(self.useless),
                self.asked,
                one_line(self.useless[0])[:80],
            )


def _titles(asking: _Asking, shown: Mapping[int, Sequence[str]]) -> dict[int, tuple[str, str]]:
    """Title and description of each category that the judge has given them."""
    named = [number for number, examples in shown.items() if examples]
    for number in sorted(shown.keys() - set(named)):
        log.warning("category %d has no examples: it gets no title, and its held-out sentences are misses", number)
    replies = asking.ask([questions.title(shown[number]) for number in named], questions.titled)
    return {number: reply for number, reply in zip(named, replies, strict=True) if reply is not None}


def _graded(
    asking: _Asking,
    numbers: Sequence[int],
    titles: Mapping[int, tuple[str, str]],
    graded: Sequence[tuple[str, int]],
) -> Grades:
    named, described = list(titles), list(titles.values())
    if described:
        prompts = [questions.consistency(described, sentence) for sentence, _ in graded]
        places = asking.ask(prompts, lambda reply: questions.chosen(reply, len(described)))
        prompts = [questions.completeness(described, sentence) for sentence, _ in graded]
        fits = asking.ask(prompts, questions.fits)
    else:
        places, fits = [None] * len(graded), [None] * len(graded)
    pairs = [questions.independence(one, other) for one, other in combinations(described, 2)]
    overlaps = asking.ask(pairs, questions.overlap)
    said = [None if place is None else named[place] for place in places]
    truth = [number for _, number in graded]
    precision, recall, f1 = zip(*(_agreement(said, truth, number) for number in numbers), strict=True)
    return Grades(
        judge=asking.judge.identity,
        categories=tuple(numbers),
        titles=tuple(titles.get(number, ("", ""))[0] for number in numbers),
        descriptions=tuple(titles.get(number, ("", ""))[1] for number in numbers),
        precision=precision,
        recall=recall,
        f1=f1,
        consistency=accuracy([float(one == other) for one, other in zip(said, truth, strict=True)]),
        completeness=accuracy([float(fit is not None and fit[0]) for fit in fits]),
        confidence=_mean([0.0 if fit is None else fit[1] for fit in fits]),
        independence=_mean([0.0 if value is None else 1 - value / 10 for value in overlaps]),
        asked=asking.asked,
        unanswered=len(asking.useless),
    )


def _agreement(said: Sequence[int | None], truth: Sequence[int], category: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of a category; 0 where it is never said, or never true."""
    right = sum(one == other == category for one, other in zip(said, truth, strict=True))
    of_said, of_true = said.count(category), truth.count(category)
    both = of_said + of_true
    return right / max(1, of_said), right / max(1, of_true), 2 * right / max(1, both)


def _members(sentences: Sequence[str], categories: Tensor) -> dict[int, list[str]]:
    members: dict[int, list[str]] = {}
    for sentence, category in zip(sentences, categories.tolist(), strict=True):
        members.setdefault(category, []).append(sentence)
    return members


def _shown(exemplars: Sequence[str], members: Sequence[str], count: int, seed: str) -> list[str]:
    """Up to `count` different sentences: exemplars, up to half; then any members; then more exemplars."""
    best = list(dict.fromkeys(text for sentence in exemplars if (text := sentence.strip())))
    others = sorted({text for sentence in members if (text := sentence.strip())})
    half = best[: ceil(count / 2)]
    return list(dict.fromkeys([*half, *random.Random(seed).sample(others, len(others)), *best]))[:count]


def _drawn(sentences: Sequence[str], count: int, seed: str) -> list[str]:
    return random.Random(seed).sample(sentences, min(count, len(sentences)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
