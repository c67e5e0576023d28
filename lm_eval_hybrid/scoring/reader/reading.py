"""The answer that a generated text commits to last, before it goes on to another question.

A text commits by a marker (a box, `####`, the word `answer`) or by a sentence that concludes what the question asks. A
text that ended by itself commits at the latest by its last sentence with a value; one that was cut off in the middle of
a derivation does not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm_eval_hybrid.common.thoughts import after_thought
from lm_eval_hybrid.scoring.quantities import plain, plain_digits, tight
from lm_eval_hybrid.scoring.reader import question as questions
from lm_eval_hybrid.scoring.reader.markers import after_hashes, boxed, marked
from lm_eval_hybrid.scoring.reader.question import Question
from lm_eval_hybrid.scoring.reader.stated_value import NEW, Value, stated

_FAULT = re.compile(r"\b(?:mistake|error|incorrect|wrong|miscalculat\w+)\b", re.IGNORECASE)
_CORRECTED = 0.75  # of the asked words, for a conclusion that stands against a marked answer
_SAME_QUESTION = 0.5  # of the asked words, in a sentence that poses the question again
_QUOTED = 25  # characters: a shorter sentence may be in a question by chance

_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|consequently|accordingly|in conclusion|in total|in summary|to summari[sz]e|finally|"
    r"overall|altogether|conclude|it follows|the (?:solutions?|results?)\b.{,40}?\b(?:is|are))\b"
    r"|\\therefore|∴|^\W*So\b",
    re.IGNORECASE,
)
_CONTINUES = re.compile(r"(?:This|That|It|Which)\b(?:\s\w+)?\s+(?:is|equals|gives|simplifies to)\s+(?:\w+\s)?[-$\\\d(]")
# What speaks for a sentence, as shares of the asked words.
_CONCLUDING, _LAST = 0.35, 0.15
_UNASKED = 0.25  # for a conclusion, where no question is known
_NEAR = 0.2  # conclusions within this of the best are as good, and the last of them counts
_ENOUGH, _LITTLE = 0.5, 0.2  # for a sentence of a text that was cut off; for one that says `therefore`
_MAX_SENTENCES = 400


@dataclass(frozen=True)
class Reading:
    """The answer of a text, as it stands there.

    Attributes:
        words: the words of the text in which an answer in words may be named: those that are marked as the answer, or
            the sentence that concludes.
    """

    answer: str
    words: str


def read(text: str, question: str | None = None, cut: bool | None = None) -> Reading | None:
    """The answer that a text commits to after its thought; None where it commits to none.

    Args:
        question: the question, if known; it tells conclusions from remarks.
        cut: whether a length limit ended the text; None where that is unknown and the text's end has to tell.
    """
    asked, text = questions.parse(question), lines(after_thought(text))
    for start in headers(text):
        # What follows a header answers another question, unless nothing before it answers this one.
        found = _read(text[:start].rstrip(), asked, False)
        if found is not None:
            return found
    return _read(text, asked, cut_off(text) if cut is None else cut)


def marked_answer(text: str) -> str | None:
    r"""The last `\boxed{}` or `####` answer of a reference solution, whichever comes later; None where it has none."""
    found = [each for each in (boxed(text), after_hashes(text)) if each is not None]
    return max(found)[1] if found else None


def _read(text: str, asked: Question, cut: bool) -> Reading | None:
    said = [each for each in sentences(without_fragment(text) if cut else text) if not _quotes(each, asked)]
    answers = {each: None if each.endswith("?") else marked(each, asked) for each in dict.fromkeys(said)}
    places = [place for place, each in enumerate(said) if answers[each] is not None]
    if places:
        end = next((place for place in range(places[0], len(said)) if _poses_another(said[place], asked)), len(said))
        last = max(place for place in places if place < end)
        return _correction(said[last + 1 : end], asked) or Reading(*answers[said[last]] or ("", ""))
    said = [each for each in said if not each.endswith("?")]
    found = _concluded(said, asked, cut)
    if asked.in_words and not cut and (sentence := _concluded_in_words(said, asked)) is not None:
        found = Reading(found.answer if found else sentence, sentence)
    return found


def _poses_another(sentence: str, asked: Question) -> bool:
    return poses(sentence) and asked.match(sentence) < _SAME_QUESTION


def _quotes(sentence: str, asked: Question) -> bool:
    return len(sentence) > _QUOTED and sentence in asked.text


def _correction(said: list[str], asked: Question) -> Reading | None:
    """The last conclusion after a sentence that admits a mistake in the marked answer before it."""
    fault = next((place for place, each in enumerate(said) if _FAULT.search(each)), len(said))
    for sentence in reversed(said[fault:]):
        closest = stated(sentence, asked)
        if closest is None or (asked.text and closest[0] < _CORRECTED):
            continue
        if closest[1].new and _CONCLUDES.search(sentence):
            return Reading(closest[1].text, sentence)
    return None


def _concluded(said: list[str], asked: Question, cut: bool) -> Reading | None:
    """The value that sentences conclude best; None where none concludes."""
    # What is repeated until a text is cut off adds nothing.
    rated = _rated((list(dict.fromkeys(said)) if cut else said)[-_MAX_SENTENCES:], asked, cut)
    if not rated:
        return None
    groups: dict[str, list[tuple[float, int, str, str]]] = {}
    for each in rated:
        groups.setdefault(tight(plain(each[2])).rpartition("=")[2], []).append(each)
    best = [max(group) for group in groups.values()]
    top = max(best)[0]
    _, _, answer, sentence = max((each for each in best if each[0] >= top - _NEAR), key=lambda each: each[1])
    return Reading(answer, sentence)


def _concluded_in_words(said: list[str], asked: Question) -> str | None:
    """The last of the sentences that have most of what is asked and conclude, whatever they state."""
    rated = [
        (asked.match(each) + _CONCLUDING * bool(_CONCLUDES.search(each)), place)
        for place, each in enumerate(said[-_MAX_SENTENCES:])
    ]
    return said[-_MAX_SENTENCES:][max(rated)[1]] if rated else None


def _rated(said: list[str], asked: Question, cut: bool) -> list[tuple[float, int, str, str]]:
    """Weight, place, value and sentence of each sentence that may conclude."""
    found = []
    before, closing = 0.0, None
    for place, sentence in enumerate(said):
        own, closest = asked.match(sentence), stated(sentence, asked)
        if closest is not None:
            match, value = closest
            match = max(match, before) if _CONTINUES.match(sentence) else match
            mark = _CONCLUDING if _CONCLUDES.search(sentence) else 0.0
            last = place == len(said) - 1
            if value.new:
                closing = (0.0, place, value.text, sentence)
            if mark and not asked.text:
                match = _UNASKED
            if _may_conclude(match, mark, value, cut, last):
                weight = match + mark + NEW * value.new + _LAST * (last and not cut and "=" in sentence)
                weight -= NEW * (not value.new and not mark and (not last or sentence.startswith("This")))
                found.append((weight, place, value.text, sentence))
        before = own
    if not found:
        return [] if cut or closing is None else [closing]
    if not cut:
        found[-1] = (found[-1][0] + _LAST, *found[-1][1:])
    return found


def _may_conclude(match: float, mark: float, value: Value, cut: bool, last: bool) -> bool:
    if not mark and not value.new:
        return match >= _ENOUGH and not cut
    if not cut:
        return True
    return match >= (_LITTLE if mark else _ENOUGH) or (mark > 0 and last)


SHORT = 800  # characters: a shorter text has ended by itself, whatever its end is
_MAX_SENTENCE = 2000  # characters; of longer sentences the ends count

_DISPLAY = re.compile(r"\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\begin\{([a-z]+\*?)\}.*?(?:\\end\{\1\}|\Z)", re.DOTALL)
_HYPHENS = dict.fromkeys((0x2010, 0x2011, 0x2013), "-")
_CALCULATOR = re.compile(r"<<[^<>\n]{,200}>>")  # GSM8K's notes
_DOLLARS = re.compile(r"\$ (?=\\begin)|(?<=\}) \$(?=[\s.,;:]|$)", re.MULTILINE)  # spaces inside a formula
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
_PURPOSE = re.compile(
    r"(?:(?:and|so|then|now|next|finally|first)\W+)*to (?:find|determine|compute|calculate|get|solve|express|check)\b",
    re.IGNORECASE,
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
    text = _DOLLARS.sub("$", plain_digits(_CALCULATOR.sub("", text).translate(_HYPHENS)))
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
    flat = _LABEL.sub("", _JOINT.sub(" ", _STOP_INSIDE.sub(r"\2\1 ", flat).replace("  ", " ")))
    pieces, start = [], 0
    for end in _END.finditer(flat):
        pieces.append(flat[start : end.end()])
        start = end.end()
    return [words[-_MAX_SENTENCE:] for piece in (*pieces, flat[start:]) if (words := " ".join(piece.split()))]


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence, with `=` for words that say the same; those that only state a purpose are left out."""
    found = [piece.strip() for piece in _CLAUSE_END.split(_SAYS_EQUAL.sub(_sign, sentence)) if piece.strip()]
    return [piece for piece in found if not _PURPOSE.match(piece)] or found


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
