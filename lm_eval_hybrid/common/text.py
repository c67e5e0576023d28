"""Other people's words for the terminal."""


def printable(text: str) -> str:
    """Models and downloaded files can hold anything: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
