"""What decoding needs of a model: rows of tokens read unsteered, and next-token logits of steered candidates.

A model is either in this process (`Backend`: token by token, rewindable) or on a server (`RemoteBackend`: whole
programs, one request each). `is_remote` tells them apart, for readers and for type checkers alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ForwardOutput:
    """The result of one unsteered forward pass over n new tokens of every row.

    Attributes:
        logits: [rows, n, vocab], of the next token, in the model's own dtype.
        residual: [rows, n, d] float32, the residual stream after the hook layer.
    """

    logits: Tensor
    residual: Tensor


class Sequences(Protocol):
    """Rows of tokens, each of its own length, with a KV cache that is never steered."""

    def insert(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Restart the rows `slots` with these tokens (possibly none), without returning logits for them."""

    def read(self, tokens: Tensor, counts: Sequence[int] | None = None) -> ForwardOutput:
        """Append tokens to every row: tokens [rows, n] int64, of which row i keeps the first counts[i] (None: all n).

        The output at a row's padding is undefined.
        """

    def rewind(self, lengths: Sequence[int]) -> None:
        """Cut every row back to a length in tokens that it has had within the last `ahead` tokens."""

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these rows, in this order. A row listed twice is duplicated."""

    def steered(
        self, rows: Sequence[int], positions: Sequence[int], steering: Tensor, windows: Sequence[int]
    ) -> Tensor:
        """Next-token logits of steered candidates; the KV cache stays as it is.

        Args:
            rows, positions: the m places to steer at: a row (which may repeat), and the position (from 0) of the last
                token read there.
            steering: [m, C, d] float32; steering[i, c] is added to the residual stream after the hook layer, on the
                last windows[c] positions up to positions[i] (0: all).
            windows: one for each of the C candidates.

        Returns:
            [m, C, vocab], in the model's own dtype.
        """


class LanguageModel(Protocol):
    """One causal language model and its tokenizer, wherever its weights are.

    Attributes:
        device: where logits and residuals arrive.
        context_length: the most tokens it can read.
        parameters: number of weights, which says what a pass costs relative to another model's.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    device: torch.device
    context_length: int
    parameters: int


class Backend(LanguageModel, Protocol):
    """A model in this process."""

    is_remote: Literal[False]

    def open(self, rows: int, layer: int, reach: int | None, ahead: int) -> Sequences:
        """Empty rows.

        Args:
            layer: hook layer: residuals after it are read, and steered.
            reach: the longest window that will be steered (0: all positions; None: no steering).
            ahead: the most tokens that are read at once, or rewound, apart from prompts.
        """


class RemoteBackend(LanguageModel, Protocol):
    """A model on a server. Each method runs the function of that name in `portable` there, as one request.

    Attributes:
        weights: digest of a sample of the server's weights.
    """

    is_remote: Literal[True]
    weights: str

    def draft(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `portable.programs.draft`."""

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `portable.programs.read`."""

    def sentences(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `portable.programs.sentences`."""

    def fit(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `portable.programs.fit`."""
