"""Splits generated solutions into sentences and clauses, and finds where they go on to another question."""

import re
from collections.abc import Iterator

from lm_eval_hybrid.scoring.quantities import plain_digits

SHORT = 800  # characters: a shorter text has ended by itself, whatever its end is
_MAX_SENTENCE = 2000  # characters; of longer sentences the ends count

_DISPLAY = re.compile(r"\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{([a-z]+\*?)\}.*?(?:\\end\{\1\}|\Z)", re.DOTALL)
_HYPHENS = dict.fromkeys((0x2010, 0x2011, 0x2013), "-")
_CALCULATOR = re.compile(r"<<[^<>\n]{,200}>>")  # GSM8K's notes
_ALIGNED = re.compile(
    r"(?:\\\[\s?|\$\$\s?)?\\begin\{((?:align|eqnarray|gather|split)(?:ed)?\*?)\}(.*?)(\\end\{\1\}(?:\s?\\\]|\s?\$\$)?|\Z)",
    re.DOTALL,
)
_INNER = re.compile(r"(\\begin\{[a-z]+\*?\}.*?(?:\\end\{[a-z]+\*?\}|\Z))", re.DOTALL)
_ITEM = r"(?:[-*+•>] |\(?\d{1,3}[.)] )"
# A formula on a line of its own belongs to the words before it, and a line to the colon above it.
_JOINT = re.compile(rf"\n(?=\\\[|\$\$|\\begin\{{|=|(?:\*\*|\$|\\\( ?)?\\boxed)|(?<=[:=])(?:\*\*)?\n(?!{_ITEM})")
_STOP_INSIDE = re.compile(r"([.,]) ?(\$\$|\\[\])]|(?<=[^\s$][.,])\$(?=\s|$|[A-Z]))", re.MULTILINE)
_TITLES = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
_CLOSERS = r"(?:\*\*|\\[\])]|[$\"')])*"
_END = re.compile(rf"(?<=[.!?]){_TITLES}{_CLOSERS}(?:\s(?=[A-Z\\$(\[*\"#<`\d])|(?=[A-Z][a-z]+\s)|\s(?=[a-z]\s?=))|\n")
_WHOLE = re.compile(r"(?<!\n\d\.)(?<!\n\d\d\.)(?<!\n\d\d\d\.)(?<=[.!?)\]}$*`\"'|])\Z|(?<!#)####(?!#)[^\n]*\d[^\n]*\Z")
_FORMULAS = (("\\[", "\\]"), ("\\(", "\\)"))
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s{}$\\.,]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_AMOUNT = (
    r"\s+(?:(?:also|then|just|simply|equal to|approximately|about|roughly|an? (?:total|average|sum) of)\s+)*"
    r"(?=[-$\\(*]*\d|\\frac)(?![-$\\(*]*[\d,.]+%?\s+(?:\w+\s+)?(?:times|more|less|fewer|multiplied|divided|of)\b)"
)
_SAYS_EQUAL = re.compile(
    r",?\s+(?:which|that|this|and (?:this|that|it)|it)(?: in this case)?"
    r"\s+(?:is|was|equals|g[ia]ves?(?: (?:us|him|her|them|you))?|makes|simplifies to|comes to|results in|means"
    rf"|amounts to|rounds (?:up |down |off )?to|leaves){_AMOUNT}"
    rf"|,?\s+(?:equals|is equal to|is equivalent to|simplifies to|adding up to|resulting in|totaling){_AMOUNT}"
    rf"|,\s+(?:giving|making|leaving)(?:\s+(?:us|it|him|her|them|you))?{_AMOUNT}"
    r"|,?\s+for a (?:grand )?total of\s+(?=[-$\\(*]*\d)"
)
_ABOUT = re.compile(r"approximately|about|roughly")
_CLAUSE_END = re.compile(
    r";\s+|,\s+(?=(?!(?:and|or)\s+[-$\\(\d])(?:and|but|so|which|with|while|where|since|because|as|not|whereas|after"
    r"|if|when|given|giving|making|or|we|it|he|she|they|this|that|there|the|each|its|his|her|their|both|[A-Z][a-z]+)\b)"
    r"|\s+(?=(?:because|since|whereas|while|given that|so that|but|(?:after|before) \w+ing)\s)"
    r"|(?<=[a-z])\s+--?\s+(?=[a-z])"
)

_KIND = (
    r"(?:New |Next |Another |Similar |Follow-?up |Practice |Bonus |Extra )?"
    r"(?:Question|Problem|Exercise|Task|Query|Prompt)s?"
)
_HEADER = re.compile(
    r"(?:^|(?<=[.!?\])}$\"'`]))[ \t#*>_`-]*"
    rf"(?:{_KIND}(?: ?(?:#|No\.?)? ?\d+)?[ *_]*(?:[:.]|$)"
    r"|Example \d+[ *_]*[:.]|Q\d* ?[:.)]|(?:User|Human|Student|Assistant|System|Teacher|Tutor|Instruction|Input)[ *_]*:"
    r"|You are an? (?:AI|helpful|intelligent|expert)\b"
    r"|<\|?(?:im_start|im_end|endoftext|user|assistant|system|eot_id|end)\|?>|\[INST\]"
    r"|(?:Here is|Here's|Let's try|Try|Now try|Consider) (?:another|a (?:similar|new|different))"
    r" (?:question|problem|example)\b)",
    re.MULTILINE,
)
# A problem has its data in it, and none of the words with which a solution asks itself.
_POSED = re.compile(
    r"(?:How|What|Which|Who|If|When|Where)\b(?:.*\d|(?:\W+\w+){4,})"
    r"|(?!(?:But|So|Wait|Hmm|Is|Are|Does|Did|Should|Could|Can|Right|Then|Now|Why|Let)\b)[A-Z\"$\\]\w*(?:\W+\w+){7,}"
)


def lines(text: str) -> str:
    """A text with single spaces, without blank lines and GSM8K's calculator notes; boxes on one line."""
    text = plain_digits(_CALCULATOR.sub("", text).translate(_HYPHENS))
    for start, end, _ in list(boxes(text)):
        if "\n" in text[start:end]:
            text = text[:start] + text[start:end].replace("\n", " ") + text[end:]
    return "\n".join(line for each in text.split("\n") if (line := " ".join(each.split())))


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    r"""Start, end and content of every closed box: `\boxed{}`, `\fbox{}`, `\boxed 5`."""
    for box in _BOX.finditer(text):
        if box["bare"]:
            yield box.start(), box.end(), box["bare"]
            continue
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                yield box.start(), brace.end(), text[box.end() : brace.end() - 1].strip()
                break
        else:
            return  # nothing after it closes either


def sentences(text: str) -> list[str]:
    """The sentences of a text from `lines`, formulas included, without the marks of list items."""
    flat = _DISPLAY.sub(lambda formula: formula.group().replace("\n", " "), _ALIGNED.sub(_chain, text))
    flat = _JOINT.sub(" ", _STOP_INSIDE.sub(r"\2\1 ", flat).replace("  ", " "))
    pieces, start = [], 0
    for end in _END.finditer(flat):
        pieces.append(flat[start : end.end()])
        start = end.end()
    return [words[-_MAX_SENTENCE:] for piece in (*pieces, flat[start:]) if (words := " ".join(piece.split()))]


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence, with `=` for words that say the same."""
    return [piece.strip() for piece in _CLAUSE_END.split(_SAYS_EQUAL.sub(_sign, sentence)) if piece.strip()]


def cut_off(text: str) -> bool:
    """Whether a text seems to be cut off: within a formula, or, unless it is short, not at the end of a sentence."""
    if any(text.rfind(opened) > text.rfind(closed) for opened, closed in _FORMULAS):
        return True
    return len(text) > SHORT and not _WHOLE.search(text)


def without_fragment(text: str) -> str:
    """A text without its last sentence or line, where that has no end."""
    if _WHOLE.search(text):
        return text
    ends = [end.end() for end in _END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""


def headers(text: str) -> list[int]:
    """Where the headers of further questions, and of turns in a chat, begin in a text from `lines`."""
    return [found.start() for found in _HEADER.finditer(text)]


def poses(sentence: str) -> bool:
    """Whether a sentence poses a question as exercises do, rather than as a solution asks itself."""
    return sentence.rstrip("*\"' ").endswith("?") and _POSED.match(sentence) is not None


def _chain(aligned: re.Match[str]) -> str:
    """Aligned lines as one formula, in which one `=` follows another."""
    parts = _INNER.split(aligned[2])
    parts[::2] = [part.replace("\\\\", " ").replace("&", "") for part in parts[::2]]
    return "\\[" + "".join(parts).replace("\n", " ") + ("\\]" if aligned[3] else "")


def _sign(words: re.Match[str]) -> str:
    return " ≈ " if _ABOUT.search(words.group()) else " = "
