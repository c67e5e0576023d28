"""What decoding asks of a model, wherever it lives: rows of tokens read unsteered, and steered next-token logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ForwardOutput:
    """What one unsteered forward pass over n new tokens of every row says after each of them.

    Attributes:
        logits: [rows, n, vocab], of the next token, in the model's own dtype.
        residual: [rows, n, d] float32, the residual stream after the hook layer.
    """

    logits: Tensor
    residual: Tensor


class Sequences(Protocol):
    """Rows of tokens, each of its own length. What is kept of the past is never steered."""

    def insert(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin the rows `slots` anew with these tokens, which may be none; nothing is said about them."""

    def read(self, tokens: Tensor, counts: Sequence[int] | None = None) -> ForwardOutput:
        """Append tokens to every row: tokens [rows, n] int64, of a row's the first counts[row] (None: all n).

        A reading after more tokens than a row has means nothing.
        """

    def rewind(self, lengths: Sequence[int]) -> None:
        """Go back to a length, in tokens, of every row: one it has had within the last `ahead` tokens."""

    def select(self, slots: Sequence[int]) -> None:
        """Go on with these rows only, in this order. A row listed twice becomes two."""

    def steered(
        self, rows: Sequence[int], positions: Sequence[int], steering: Tensor, windows: Sequence[int]
    ) -> Tensor:
        """Next-token logits of candidates, without a trace in what is kept.

        Args:
            rows, positions: m places to steer at: rows, and the position (from 0) of the last token read there, the
                same row as often as wanted.
            steering: [m, C, d] float32; steering[i, c] is added to the residual stream after the hook layer, on the
                last windows[c] positions up to positions[i] (0: all).
            windows: one a candidate.

        Returns:
            [m, C, vocab], in the model's own dtype.
        """


class Backend(Protocol):
    """One model and its tokenizer.

    Attributes:
        device: where logits and residuals are.
        context_length: tokens that it can read.
        parameters: how many it has: what reading the same costs, relative to another.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    device: torch.device
    context_length: int
    parameters: int

    def open(self, rows: int, layer: int, reach: int | None, ahead: int) -> Sequences:
        """Empty rows.

        Args:
            layer: hook layer: residuals after it are read, and steered.
            reach: the longest window that will be steered (0: all positions; None: nothing).
            ahead: tokens that are read at once, or taken back, at most, prompts excepted.
        """
