"""Reading the final answer out of generated text, and comparing it with the true one: what other modules need of both.

How a text is read is in `reading`, when two answers are equal in `equality`.
"""

import re
from decimal import Decimal

from lm_eval_hybrid.common.thoughts import after_thought
from lm_eval_hybrid.scoring.equality import mentions, same
from lm_eval_hybrid.scoring.notation import plain
from lm_eval_hybrid.scoring.quantities import quantity
from lm_eval_hybrid.scoring.reader.marks import after_hashes, boxed
from lm_eval_hybrid.scoring.reader.reading import Reading, read

# Digits, in threes where commas part them. A minus is a sign only where no operand stands before it.
_NUMBER = re.compile(r"(?:(?<![\w)\]}.])-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\d)")
_REST = re.compile(r"\s*(?:%|\^\\circ)?[.,;:!?]?(?:\s+[A-Za-z].*)?", re.DOTALL)


def marked_answer(text: str) -> str | None:
    r"""The last `\boxed{}` or `####` answer of a reference solution, whichever comes later, else None."""
    marked = [found for found in (boxed(text), after_hashes(text)) if found is not None]
    return max(marked)[1] if marked else None


def final_answer(text: str, question: str | None = None, cut: bool | None = None) -> str | None:
    """The answer that a generated text, thoughts aside, commits to (see `reading.read`), else None."""
    found = answered(text, question, cut)
    return None if found is None else found.answer


def answered(text: str, question: str | None = None, cut: bool | None = None) -> Reading | None:
    """The same, with the sentence in which it stands."""
    return read(after_thought(text), question, cut)


def number(answer: str) -> Decimal | None:
    r"""The number that an answer begins with, words aside: `$1,234.50`, `31.`, `40\%`, `31 crates`, `31\text{ m}`.

    None where there is none, or where it is part of an expression: `5x`, `3/4`, `x = 31`.
    """
    text = plain(answer)
    found = _NUMBER.match(text)
    if found is None or not _REST.fullmatch(text, found.end()):
        return None
    return Decimal(found.group().replace(",", ""))


def same_number(answer: str, truth: str) -> bool:
    """Whether the truth is a number and the answer equal to it, whatever else the answer says after its own."""
    if quantity(plain(truth)) is None:
        return False
    value = number(answer)
    return same(answer, truth) or (value is not None and value == number(truth))


def same_expression(answer: str, truth: str) -> bool:
    """Whether two mathematical answers are equal (see `equality.same`)."""
    return same(answer, truth)


def same_answer(answer: str, truth: str) -> bool:
    """Whether two answers are equal, as numbers (see `same_number`) or as expressions."""
    return same_number(answer, truth) or same(answer, truth)


def agrees(found: Reading, truth: str) -> bool:
    """Whether a reading is the true answer: equal to it, or, where the truth is words, in a sentence that names it."""
    return same_answer(found.answer, truth) or mentions(found.sentence, truth)
