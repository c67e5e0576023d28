"""Where a text goes on after the posed question is answered: with other questions, mostly made up."""

import re

_HEADERS = re.compile(
    r"(?:^|(?<=\n)|(?<=[.!?\])}$\"'`]))[ \t]*(?:[#*>_`-]+[ \t]*)*"
    r"(?:(?:New |Next |Another |Similar |Follow-?up |Practice |Bonus |Extra )?(?:Question|Problem|Exercise|Task|Example|Prompt|Instruction|Query)s?"
    r"(?:[ \t]*(?:#|No\.?)?[ \t]*\d+)?[ \t*_]*[:.\n]"
    r"|Q(?:\d+)?[ \t]*[:.)]|(?:User|Human|Student|Assistant|System|Input|Tutor|Teacher)[ \t*_]*:"
    r"|You are an? (?:AI|helpful|intelligent|expert)|<\|?[a-z_]+\|?>|\[INST\]|### ?(?:Question|Instruction|Input|Problem|User|Human)"
    r"|(?:Here is|Here's|Let's try|Try|Now try|Consider) (?:another|a (?:similar|new|different)) (?:question|problem|example)"
    r"|(?:What if|Suppose instead)\b)",
)


def headers(text: str) -> list[int]:
    """Where headers of questions begin in a text, in order."""
    return [found.start() for found in _HEADERS.finditer(text)]
