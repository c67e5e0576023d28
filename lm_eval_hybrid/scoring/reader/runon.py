"""Where a text goes on after the posed question is answered: with other questions, mostly made up."""

import re

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


def headers(text: str) -> list[int]:
    """Where headers of questions begin in a text of single spaces (see `sentences.lines`), in order."""
    return [found.start() for found in _HEADER.finditer(text)]


def poses(sentence: str) -> bool:
    """Whether a sentence poses a question, as exercises do, and as solutions do not."""
    return sentence.rstrip("*\"' ").endswith("?") and _POSED.match(sentence) is not None
