"""The clauses of a sentence, in which words that say that two things are equal are written `=`."""

import re

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
_PARTS = re.compile(
    r";\s+|,\s+(?=(?!(?:and|or)\s+[-$\\(\d])(?:and|but|so|which|with|while|where|since|because|as|not|whereas|after"
    r"|if|when|given|giving|making|or|we|it|he|she|they|this|that|there|the|each|its|his|her|their|both|[A-Z][a-z]+)\b)"
    r"|\s+(?=(?:because|since|whereas|while|given that|after|before|so that|but)\s)|(?<=[a-z])\s+--?\s+(?=[a-z])"
)
_PURPOSE = re.compile(
    r"(?:(?:and|so|then|now|next|finally|first)\W+)*to (?:find|determine|compute|calculate|get|solve|express|check)\b",
    re.IGNORECASE,
)
_RESULT = re.compile(r"(?:and )?(?:so|thus|therefore|hence)\b", re.IGNORECASE)
_REASON = re.compile(r"(?:since|because|as|if|when|where|given|while)\b", re.IGNORECASE)


def clauses(sentence: str) -> list[str]:
    """The clauses of a sentence, without those that only say what is to be found."""
    found = [piece.strip() for piece in _PARTS.split(_SAYS_EQUAL.sub(_sign, sentence)) if piece.strip()]
    return [piece for piece in found if not _PURPOSE.match(piece)] or found


def gives_result(clause: str) -> bool:
    """Whether a clause begins as what follows from another."""
    return _RESULT.match(clause) is not None


def gives_reason(clause: str) -> bool:
    """Whether a clause begins as a condition of another."""
    return _REASON.match(clause) is not None


def _sign(words: re.Match[str]) -> str:
    return " ≈ " if _ABOUT.search(words.group()) else " = "
