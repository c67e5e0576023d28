"""The text of an answer as its tokens arrive, and where a stop string ends it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the bytes of an unfinished character to."""

_WINDOW = 16
"""Tokens decoded together at most, where characters allow: a token costs the same however long the answer is."""


class Transcript:
    """Decodes one answer token by token.

    Bytes of an unfinished character at the end are held back until it is whole, so a character spread over
    several tokens comes out right and belongs to the last of them. The pieces joined are the decoded answer.

    Attributes:
        pieces: the text that each token added.
        text: all of it.
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
        self._shown = 0  # characters of the decoded window that are in `text` already

    def push(self, token: Sequence[int]) -> bool:
        """Add a token, as one id of the tokenizer or several; say whether a stop string is complete."""
        self._window += token
        decoded = self._decode(self._window)
        whole = decoded.rstrip(_INCOMPLETE)
        self._add(whole[self._shown :])
        self._shown = max(self._shown, len(whole))
        if len(self._window) > _WINDOW and whole == decoded:
            # A few tokens stay as context: some tokenizers drop the leading space of what they decode first.
            self._window = self._window[-_WINDOW // 4 :]
            self._shown = len(self._decode(self._window))
        return self.cut is not None

    def close(self) -> None:
        """Give up waiting: what is held back joins the last token's piece."""
        held = self._decode(self._window)[self._shown :]
        if self.pieces and held:
            self.pieces[-1] += held
            self.text += held

    def kept(self) -> list[str]:
        """The pieces of the tokens that start before the cut, the last trimmed to it; all of them without a cut."""
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
