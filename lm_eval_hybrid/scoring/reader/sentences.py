"""Generated solutions as sentences, each with the formulas that belong to it."""

import re

SHORT = 800  # characters: a shorter text has ended by itself, whatever its end is
_LONGEST = 2000  # characters of a sentence; of longer ones their ends count

_DISPLAY = re.compile(r"\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{([a-z]+\*?)\}.*?(?:\\end\{\1\}|\Z)", re.DOTALL)
_MINUS = dict.fromkeys((0x2010, 0x2011, 0x2013, 0x2212), "-")
_NOTE = re.compile(r"<<[^<>\n]{,200}>>")
_ALIGNED = re.compile(
    r"(?:\\\[\s?|\$\$\s?)?\\begin\{((?:align|eqnarray|gather|split)(?:ed)?\*?)\}(.*?)(\\end\{\1\}(?:\s?\\\]|\s?\$\$)?|\Z)",
    re.DOTALL,
)
_INNER = re.compile(r"(\\begin\{[a-z]+\*?\}.*?(?:\\end\{[a-z]+\*?\}|\Z))", re.DOTALL)
_ITEM = r"(?:[-*+•>] |\(?\d{1,3}[.)] )"
# A formula on a line of its own belongs to the words before it, and a line to the colon above it.
_JOINT = re.compile(rf"\n(?=\\\[|\$\$|\\begin\{{|=|(?:\*\*|\$|\\\( ?)?\\boxed)|(?<=[:=])(?:\*\*)?\n(?!{_ITEM})")
_LABEL = re.compile(rf"^(?:{_ITEM}+(?=\S)|[#* ]*Step \d+[.:]?(?:\*\*)?:? ?)", re.MULTILINE)
_STOP_INSIDE = re.compile(r"([.,]) ?(\$\$|\\[\])]|(?<=[^\s$][.,])\$(?=\s|$|[A-Z]))", re.MULTILINE)
_TITLES = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
_CLOSERS = r"(?:\*\*|\\[\])]|[$\"')])*"
_END = re.compile(rf"(?<=[.!?]){_TITLES}{_CLOSERS}(?:\s(?=[A-Z\\$(\[*\"#<`\d])|(?=[A-Z][a-z]+\s)|\s(?=[a-z]\s?=))|\n")
_WHOLE = re.compile(r"(?<!\n\d\.)(?<!\n\d\d\.)(?<!\n\d\d\d\.)(?<=[.!?)\]}$*`\"'|])\Z|(?<!#)####(?!#)[^\n]*\d[^\n]*\Z")
_FORMULAS = (("\\[", "\\]"), ("\\(", "\\)"))


def lines(text: str) -> str:
    """A text without what only spaces it, and without GSM8K's notes for a calculator: spaces single, no blank lines."""
    text = _NOTE.sub("", text).translate(_MINUS)
    return "\n".join(line for each in text.split("\n") if (line := " ".join(each.split())))


def sentences(text: str) -> list[str]:
    """The sentences of a text of single spaces (see `lines`), without the marks of list items; formulas included."""
    flat = _DISPLAY.sub(lambda formula: formula.group().replace("\n", " "), _ALIGNED.sub(_chain, text))
    flat = _LABEL.sub("", _JOINT.sub(" ", _STOP_INSIDE.sub(r"\2\1 ", flat).replace("  ", " ")))
    pieces, start = [], 0
    for end in _END.finditer(flat):
        pieces.append(flat[start : end.end()])
        start = end.end()
    return [words[-_LONGEST:] for piece in (*pieces, flat[start:]) if (words := " ".join(piece.split()))]


def _chain(aligned: re.Match[str]) -> str:
    """Aligned lines as one formula, in which one `=` follows another."""
    parts = _INNER.split(aligned[2])
    parts[::2] = [part.replace("\\\\", " ").replace("&", "") for part in parts[::2]]
    return "\\[" + "".join(parts).replace("\n", " ") + ("\\]" if aligned[3] else "")


def broken(text: str) -> bool:
    """Whether a text seems to break off: within a formula, or, unless it is short, not at the end of a sentence."""
    if any(text.rfind(opened) > text.rfind(closed) for opened, closed in _FORMULAS):
        return True
    return len(text) > SHORT and not _WHOLE.search(text)


def unbroken(text: str) -> str:
    """A text without its last sentence or line, where that has no end."""
    if _WHOLE.search(text):
        return text
    ends = [end.end() for end in _END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""
