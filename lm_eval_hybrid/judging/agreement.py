"""How far two scorers of the same answers agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_hybrid.common.errors import HybridError


@dataclass(frozen=True)
class Agreement:
    """Answers counted by what a first scorer and a second say of them.

    Attributes:
        both_right, both_wrong: they say the same.
        only_first, only_second: right to this one alone.
        unclear: the second does not say; they are in none of the other counts, nor in what is made of these.
    """

    both_right: int
    both_wrong: int
    only_first: int
    only_second: int
    unclear: int = 0

    @property
    def judged(self) -> int:
        """Answers of which both say something."""
        return self.both_right + self.both_wrong + self.only_first + self.only_second

    @property
    def first_right(self) -> float | None:
        """Of the judged answers, those right to the first, in [0, 1]; None where there are none."""
        return self._share(self.both_right + self.only_first)

    @property
    def second_right(self) -> float | None:
        """Of the judged answers, those right to the second, in [0, 1]; None where there are none."""
        return self._share(self.both_right + self.only_second)

    @property
    def share(self) -> float | None:
        """Of the judged answers, those of which they say the same, in [0, 1]; None where there are none."""
        return self._share(self.both_right + self.both_wrong)

    @property
    def kappa(self) -> float | None:
        """Agreement above chance, 1 where it is perfect (Cohen 1960).

        None where there are no answers, or where chance alone agrees on all: both call all right, or all wrong.
        """
        n = self.judged
        first, second = self.both_right + self.only_first, self.both_right + self.only_second
        chance = first * second + (n - first) * (n - second)  # times n^2, so that it is exact
        if chance == n * n:
            return None
        return (n * (self.both_right + self.both_wrong) - chance) / (n * n - chance)

    def _share(self, answers: int) -> float | None:
        return answers / self.judged if self.judged else None


def agreement(first: Sequence[bool], second: Sequence[bool | None]) -> Agreement:
    """The agreement of two scorers' verdicts, in the same order of answers; None is one that the second leaves open.

    Raises:
        HybridError: for different numbers of verdicts.
    """
    if len(first) != len(second):
        raise HybridError(
            f"agreement needs verdicts on the same answers; found {len(first)} and {len(second)}; score them again"
        )
    count = Counter((bool(one), other) for one, other in zip(first, second, strict=True))
    return Agreement(
        both_right=count[True, True],
        both_wrong=count[False, False],
        only_first=count[True, False],
        only_second=count[False, True],
        unclear=count[True, None] + count[False, None],
    )
