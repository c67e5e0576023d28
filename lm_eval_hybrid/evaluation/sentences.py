"""Generated solutions as sentences, each with the formulas that belong to it."""

import re

_INDENT = re.compile(r"\n[ \t]+")
_DISPLAY = re.compile(
    r"\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{([a-z]+\*?)\}.*?(?:\\end\{\1\}|\Z)", re.DOTALL
)
_ITEM = r"(?:[-*+•>][ \t]+|\(?\d{1,3}[.)][ \t]+)"
# A formula on a line of its own belongs to the words before it, and a line to the colon above it.
_JOINT = re.compile(
    r"\s*\n\s*(?=\\\[|\$\$|\\begin\{|=|(?:\*\*|\$|\\\(\s*)?\\boxed)"
    rf"|(?<=[:=])(?:\*\*)?\s*\n\s*(?!{_ITEM})"
)
_LABEL = re.compile(rf"^(?:{_ITEM}+(?=\S)|(?:[#*]+[ \t]*)*Step \d+[.:]?(?:\*\*)?:?[ \t]*)", re.MULTILINE)
_TITLES = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
_CLOSERS = r"(?:\*\*|\\[\])]|\$+|[\"')])*"
_STOP = re.compile(r"([.,])[ \t]*(\$\$|\\[\])]|(?<=[^\s\d$][.,])\$(?=\s|$|[A-Z]))")  # a full stop within a formula
_END = re.compile(rf"(?<=[.!?]){_TITLES}{_CLOSERS}(?:\s+(?=[A-Z\\$(\[*\"#<`\d])|(?=[A-Z][a-z]+\s)|\s+(?=[a-z]\s*=))|\n\s*")
_WHOLE = re.compile(r"(?<!\n\d\.)(?<!\n\d\d\.)(?<!\n\d\d\d\.)(?<=[.!?)\]}$*`\"'|])$")
SHORT = 800  # characters: what is no longer ended by itself, however it ends


def sentences(text: str) -> list[str]:
    """The sentences of a text, spaces single, without the marks of list items; formulas included."""
    flat = _DISPLAY.sub(lambda formula: formula.group().replace("\n", " "), _INDENT.sub("\n", text))
    flat = _STOP.sub(r"\2\1 ", flat)
    flat = _LABEL.sub("", _JOINT.sub(" ", flat))
    pieces, start = [], 0
    for end in _END.finditer(flat):
        pieces.append(flat[start : end.end()])
        start = end.end()
    return [words for piece in (*pieces, flat[start:]) if (words := " ".join(piece.split()))]


def broken(text: str) -> bool:
    """Whether a text seems to break off: within a formula, or, unless it is short, not at the end of a sentence."""
    if any(text.rfind(opened) > text.rfind(closed) for opened, closed in (("\\[", "\\]"), ("\\(", "\\)"))):
        return True
    return len(text) > SHORT and not _WHOLE.search(text.rstrip())


def unbroken(text: str) -> str:
    """A text without its last sentence or line."""
    text = text.rstrip()
    ends = [end.end() for end in _END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""
