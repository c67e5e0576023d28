"""Reading the final answer out of generated text, and comparing it with the true one."""

import re
import threading
from decimal import Decimal

THOUGHT_START = "<think>"
THOUGHT_END = "</think>"

# Digits, in threes where commas part them. A minus is a sign only where no operand stands before it.
_NUMBER = re.compile(r"(?:(?<![\w)\]}.])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\d)")
_REST = re.compile(r"\s*[%°]?[.,;:!?]?(?:\s+[A-Za-z].*)?", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")
_VERIFY_SECONDS = 5


def thought_is_open(text: str) -> bool:
    """Whether the last mark of a thought in `text` opens one."""
    return text.rfind(THOUGHT_START) > text.rfind(THOUGHT_END)


def after_thought(text: str) -> str:
    """The part of `text` after its last end of thought; all of it where no thought ends."""
    return text.rpartition(THOUGHT_END)[2]


def marked_answer(text: str) -> str | None:
    r"""The last `\boxed{}` or `####` answer of `text`, whichever comes later, else None."""
    marked = [found for found in (_last_boxed(text), _last_hashes(text)) if found is not None]
    return max(marked)[1] if marked else None


def final_answer(text: str) -> str | None:
    """The marked answer of `text` (see `marked_answer`), else its last number, else None."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    numbers = _NUMBER.findall(text)
    return numbers[-1].strip() if numbers else None


def number(answer: str) -> Decimal | None:
    r"""The number that an answer begins with, words aside: `$1,234.50`, `31.`, `40\%`, `31 crates`, `31\text{ m}`.

    None where there is none, or where it is part of an expression: `5x`, `3/4`, `x = 31`.
    """
    plain = _plain(answer)
    found = _NUMBER.match(plain)
    if found is None or not _REST.fullmatch(plain, found.end()):
        return None
    return Decimal(re.sub(r"[$,]", "", found.group()))


def same_number(answer: str, truth: str) -> bool:
    """Whether both are plain numbers (see `number`) of the same value."""
    value = number(answer)
    return value is not None and value == number(truth)


def same_expression(answer: str, truth: str) -> bool:
    r"""Whether two mathematical answers are equal: as text, as numbers, or for math_verify.

    math_verify stops itself with a signal after five seconds, which only the main thread can receive: elsewhere it runs
    without a limit.
    """
    texts = [_plain(text).replace(" ", "") for text in (answer, truth)]
    if texts[0] == texts[1]:
        return True
    if all(_NUMBER.fullmatch(text) for text in texts):
        return same_number(answer, truth)
    from math_verify import parse, verify  # brings in sympy, which takes a while

    limit = _VERIFY_SECONDS if threading.current_thread() is threading.main_thread() else None
    gold, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=limit) for text in (truth, answer))
    return bool(verify(gold, found, timeout_seconds=limit))


def _plain(answer: str) -> str:
    """An answer without what only typesets it: spaces of LaTeX, dollar signs, text boxes, a final full stop."""
    text = answer.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%").replace("\\!", "")
    text = re.sub(r"\\[,;: ]|~", " ", _WORDS.sub(r"\1", text))
    text = text.replace("dfrac", "frac").replace("tfrac", "frac").strip().strip("$").strip()
    return text.rstrip(".").rstrip()


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Position and content of the last `\\boxed{...}` whose braces close."""
    opening = "\\boxed{"
    start = text.rfind(opening)
    while start >= 0:
        depth = 1
        for end in range(start + len(opening), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return start, text[start + len(opening) : end]
        start = text.rfind(opening, 0, start)
    return None


def _last_hashes(text: str) -> tuple[int, str] | None:
    """Position and content of the last `####` line that holds something."""
    found = list(_HASHES.finditer(text))
    return (found[-1].start(), found[-1].group(1).strip()) if found else None
