"""A judge's verdicts on answers, by the protocol of the paper (arXiv 2510.07364), and how far a rule agrees.

The judge reads the question, the correct answer and the whole text that the model wrote, finds the final answer of
both, decides whether they are equivalent, and replies YES or NO. An answer is right if "yes" stands anywhere in the
reply, in any case: "not yes" counts as right as well, as in the paper's code. A thought before the reply is not read.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.common.thoughts import after_thought, thought_is_open
from lm_eval_hybrid.judging.load import CachedJudge, load
from lm_eval_hybrid.judging.recipe import JudgeRecipe, cost
from lm_eval_hybrid.judging.templates import rendered
from lm_eval_hybrid.results.recordings import Recording, Score

REPEATS = 3  # as in the paper
_PROMPT = Path(__file__).parent / "prompts" / "verdict.j2"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedAnswer:
    """What a judge is shown: the question, the correct answer (or a solution that ends in it), a model's answer."""

    question: str
    reference: str
    answer: str

    @property
    def prompt(self) -> str:
        return rendered(_PROMPT, question=self.question, reference=self.reference, answer=self.answer)


@dataclass(frozen=True)
class Verdict:
    """A judge's replies on one answer, counted.

    Attributes:
        yes, no: replies with and without "yes" in them.
        unclear: replies among both that are not plainly YES or NO.
    """

    yes: int
    no: int
    unclear: int

    @classmethod
    def of(cls, replies: Sequence[str]) -> "Verdict":
        yes = sum("yes" in _said(reply) for reply in replies)
        return cls(yes, len(replies) - yes, sum(not _plain(reply) for reply in replies))

    @property
    def right(self) -> bool | None:
        """The majority of the replies; None on a tie, or if all are unclear."""
        return None if self.yes == self.no or self.unclear == self.yes + self.no else self.yes > self.no


@dataclass(frozen=True)
class Agreement:
    """Answers counted by the verdicts of two scorers.

    Attributes:
        both_right, both_wrong: answers on which they agree.
        only_first, only_second: right by one scorer alone.
        unclear: without a verdict of the second scorer; in none of the other counts, nor in the shares and kappa.
    """

    both_right: int
    both_wrong: int
    only_first: int
    only_second: int
    unclear: int = 0

    @classmethod
    def of(cls, pairs: Sequence[tuple[bool, bool | None]]) -> "Agreement":
        """Count (first, second) verdicts, one pair an answer."""
        count = Counter(pairs)
        return cls(
            both_right=count[True, True],
            both_wrong=count[False, False],
            only_first=count[True, False],
            only_second=count[False, True],
            unclear=count[True, None] + count[False, None],
        )

    @property
    def judged(self) -> int:
        """Answers with a verdict of both."""
        return self.both_right + self.both_wrong + self.only_first + self.only_second

    @property
    def first_right(self) -> float | None:
        """Share of the judged answers that the first calls right; None without any."""
        return self._share(self.both_right + self.only_first)

    @property
    def second_right(self) -> float | None:
        """Share of the judged answers that the second calls right; None without any."""
        return self._share(self.both_right + self.only_second)

    @property
    def share(self) -> float | None:
        """Share of the judged answers on which they agree; None without any."""
        return self._share(self.both_right + self.both_wrong)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa; None without judged answers, or if both call all right, or all wrong."""
        from sklearn.metrics import cohen_kappa_score

        if self.judged in (self.both_right, self.both_wrong):
            return None
        counts = [self.both_right, self.both_wrong, self.only_first, self.only_second]
        return float(cohen_kappa_score([1, 0, 1, 0], [1, 0, 0, 1], sample_weight=counts))

    def _share(self, answers: int) -> float | None:
        return answers / self.judged if self.judged else None


def judge_answers(judge: CachedJudge, answers: Sequence[JudgedAnswer], repeats: int = REPEATS) -> list[Verdict]:
    """The verdict on each answer, from `repeats` replies, each of which is kept.

    Judges here decode greedily, so the replies to an answer may all be equal.

    Raises:
        HybridError: the judge cannot be asked, or its replies cannot be kept; those that came are kept.
    """
    replies = judge.repeated([answer.prompt for answer in answers], repeats)
    if unclear := [reply for of_answer in replies for reply in of_answer if not _plain(reply)]:
        log.warning(
            "%d of the judge's %d replies are not plainly YES or NO, such as %r; if they are cut off, raise max_tokens",
            len(unclear),
            len(answers) * repeats,
            one_line(unclear[0])[:80],
        )
    return [Verdict.of(of_answer) for of_answer in replies]


def judge_recordings(
    recordings: Sequence[Recording], recipe: JudgeRecipe, repeats: int, folder: Path
) -> tuple[str, list[list[Verdict]]]:
    """(identity of the judge, for each recording a verdict on each answer, in the order of `recordings.scores`).

    Logs what it costs at most before asking. Replies are kept in `folder`.

    Raises:
        HybridError: a task has no question, or the judge cannot be asked.
    """
    shown = [_shown(recording) for recording in recordings]
    answers = [answer for of_recording in shown for answer in of_recording]
    judge = CachedJudge(load(recipe), folder)
    log.info("judge %s: %s", judge.identity, cost(((repeats, answer.prompt) for answer in answers), recipe))
    verdicts = iter(judge_answers(judge, answers, repeats))
    return judge.identity, [list(islice(verdicts, len(of_recording))) for of_recording in shown]


def agreements(scores: Sequence[Score], verdicts: Sequence[Verdict]) -> dict[str, Agreement]:
    """By model, how far a recording's scores (first) and the judge's verdicts on the same answers agree."""
    by_model: dict[str, list[tuple[bool, bool | None]]] = {}
    for score, verdict in zip(scores, verdicts, strict=True):
        by_model.setdefault(score.model, []).append((score.right, verdict.right))
    return {model: Agreement.of(pairs) for model, pairs in by_model.items()}


def _shown(recording: Recording) -> list[JudgedAnswer]:
    shown = []
    for index, task in enumerate(recording.tasks):
        if task.question is None:
            raise HybridError(
                f"{recording.path}, task {index}: has no question recorded, which a judge needs; leave out --judge"
            )
        shown += [JudgedAnswer(task.question, task.truth, text) for text in task.answers.values()]
    return shown


def _said(reply: str) -> str:
    """A reply without the thought before it, in lower case."""
    return "" if thought_is_open(reply) else after_thought(reply).lower()


def _plain(reply: str) -> bool:
    """Whether a reply begins with YES or NO and does not have the other word as well."""
    words = re.findall(r"[a-z]+", _said(reply))
    return words[:1] in (["yes"], ["no"]) and not {"yes", "no"} <= set(words)
