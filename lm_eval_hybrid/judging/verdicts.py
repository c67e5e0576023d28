"""A judge's verdicts on answers, by the protocol of the paper (arXiv 2510.07364, as its code has it).

The judge reads the question, the correct answer and the whole of what the model wrote, is asked to find the final
answer of both and whether they are equivalent, and replies YES or NO. An answer is right where "yes" stands in the
reply, in whatever case: so "not yes" is right as well, which is the paper's rule and is kept. What a reply holds up to
the end of a marked thought is no part of it.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_hybrid.common.errors import one_line
from lm_eval_hybrid.common.thoughts import after_thought, thought_is_open
from lm_eval_hybrid.judging.cache import CachedJudge
from lm_eval_hybrid.judging.cost import Estimate, cost
from lm_eval_hybrid.judging.recipe import JudgeRecipe
from lm_eval_hybrid.judging.templates import rendered

REPEATS = 3  # the paper's, of 2026
_PROMPT = Path(__file__).parent / "prompts" / "verdict.j2"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a judge is shown: the question, the correct answer (or a solution that ends in it), what a model wrote."""

    question: str
    reference: str
    answer: str

    @property
    def prompt(self) -> str:
        return rendered(_PROMPT, question=self.question, reference=self.reference, answer=self.answer)


@dataclass(frozen=True)
class Verdict:
    """A judge's replies on one answer.

    Attributes:
        yes: how many have "yes" in them.
        no: how many have not.
        unclear: how many of both are not plainly YES or NO.
    """

    yes: int
    no: int
    unclear: int

    @classmethod
    def of(cls, replies: Sequence[str]) -> "Verdict":
        """What the replies say, by the module's rule."""
        yes = sum("yes" in _said(reply) for reply in replies)
        return cls(yes, len(replies) - yes, sum(not _plain(reply) for reply in replies))

    @property
    def right(self) -> bool | None:
        """What most replies say; None where that is as many for both, or all are unclear."""
        return None if self.yes == self.no or self.unclear == self.yes + self.no else self.yes > self.no


def estimate(asked: Sequence[Asked], recipe: JudgeRecipe, repeats: int = REPEATS) -> Estimate:
    """What `judge_answers` takes at most; replies that are kept already cost nothing."""
    return cost(((repeats, one.prompt) for one in asked), recipe)


def judge_answers(judge: CachedJudge, asked: Sequence[Asked], repeats: int = REPEATS) -> list[Verdict]:
    """The verdict on each answer, of `repeats` replies.

    Each is asked for by itself and kept. Judges here decode greedily, so the replies to an answer may all be equal.

    Raises:
        HybridError: where the judge cannot be asked, or its replies not be kept; those that came are.
    """
    replies = judge.repeated([one.prompt for one in asked], repeats)
    if unclear := [reply for said in replies for reply in said if not _plain(reply)]:
        log.warning(
            "%d of the judge's %d replies are not plainly YES or NO, such as %r; a higher max_tokens helps where they "
            "are cut off",
            len(unclear),
            len(asked) * repeats,
            one_line(unclear[0])[:80],
        )
    return [Verdict.of(said) for said in replies]


def _said(reply: str) -> str:
    """A reply without the thought before it, in small letters."""
    return "" if thought_is_open(reply) else after_thought(reply).lower()


def _plain(reply: str) -> bool:
    """Whether a reply begins with YES or NO and does not have the other word as well."""
    words = re.findall(r"[a-z]+", _said(reply))
    return words[:1] in (["yes"], ["no"]) and not {"yes", "no"} <= set(words)
