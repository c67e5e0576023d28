"""Decodes an answer as its tokens arrive, and finds where a stop string ends it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Tokenizers decode the bytes of an incomplete character to this."""

_WINDOW = 16
"""The most tokens decoded together (unless a character is longer), so that a token costs the same in a long answer."""


class Transcript:
    """The text of one answer so far.

    The bytes of an incomplete character at its end are held back until it is complete, so a character spread over
    several tokens is decoded correctly and belongs to the last of them. The joined pieces are the decoded answer.

    Attributes:
        pieces: the text that each token added.
        text: the joined pieces.
        cut: index in `text` at which the earliest stop string starts; None before one appears.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.pieces: list[str] = []
        self.text = ""
        self.cut: int | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(s for s in stop if s)
        self._longest = max(map(len, self._stop), default=0)
        self._window: list[int] = []
        self._shown = 0  # how many characters of the decoded window are in `text`

    def push(self, token: Sequence[int]) -> bool:
        """Add a token, as one or more ids of the tokenizer; returns whether a stop string is complete."""
        self._window += token
        decoded = self._decode(self._window)
        whole = decoded.rstrip(_INCOMPLETE)
        self._add(whole[self._shown :])
        self._shown = max(self._shown, len(whole))
        if len(self._window) > _WINDOW and whole == decoded:
            # A few tokens stay as context: some tokenizers drop the space before the first token that they decode.
            self._window = self._window[-_WINDOW // 4 :]
            self._shown = len(self._decode(self._window))
        return self.cut is not None

    def close(self) -> None:
        """End the answer: what is held back is added to the last token's piece."""
        held = self._decode(self._window)[self._shown :]
        if self.pieces and held:
            self.pieces[-1] += held
            self.text += held

    def kept(self) -> list[str]:
        """The pieces of the tokens that begin before the cut, the last trimmed to it; without a cut, all pieces."""
        if self.cut is None:
            return self.pieces
        kept, start = [], 0
        for piece in self.pieces:
            if start >= self.cut:
                break
            kept.append(piece[: self.cut - start])
            start += len(piece)
        return kept

    def _add(self, piece: str) -> None:
        self.pieces.append(piece)
        start = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        found = [at for at in (self.text.find(s, start) for s in self._stop) if at >= 0]
        if found and self.cut is None:
            self.cut = min(found)

    def _decode(self, tokens: list[int]) -> str:
        decoded = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded  # type: ignore[return-value]  # a list of texts only for a list of lists
